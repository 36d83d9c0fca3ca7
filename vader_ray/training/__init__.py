"""The loop of one worker; knows neither Ray nor MLflow."""
