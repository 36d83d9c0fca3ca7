"""Estimate of a training step's memory and time, without weights and without a GPU."""
