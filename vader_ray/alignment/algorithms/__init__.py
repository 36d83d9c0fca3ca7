"""Algorithms: one file of this folder is one algorithm."""
