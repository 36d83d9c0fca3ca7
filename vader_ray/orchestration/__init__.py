"""The only room with Ray and MLflow."""
