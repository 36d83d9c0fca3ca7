"""Metrics: measured on held-out videos and never trained."""
