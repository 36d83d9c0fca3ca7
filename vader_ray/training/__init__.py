"""The training loop of one worker; uses neither Ray nor MLflow."""
