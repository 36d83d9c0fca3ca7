"""Align video diffusion models with reward gradients (VADER, arXiv 2407.08737), orchestrated by Ray and MLflow."""
