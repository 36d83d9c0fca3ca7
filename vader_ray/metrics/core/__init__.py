"""Code that metrics share."""
