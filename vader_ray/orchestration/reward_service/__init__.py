"""Rewards in Ray actors."""
