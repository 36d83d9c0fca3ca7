"""Trained adapters for other people: model cards, and the Hugging Face hub."""
