"""Sweeps with Ray Tune."""
