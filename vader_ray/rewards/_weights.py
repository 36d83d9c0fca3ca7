"""The old place of `vader_ray.checkpoints`, for rewards that still import from here."""

from vader_ray.checkpoints import SUFFIXES, Source, load_strictly, obtain, only_file, read_state_dict

__all__ = ["SUFFIXES", "Source", "load_strictly", "obtain", "only_file", "read_state_dict"]
