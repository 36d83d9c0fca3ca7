"""Code that rewards share."""
