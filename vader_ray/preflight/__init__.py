"""Estimate of a step's memory and time without weights and without a GPU."""
