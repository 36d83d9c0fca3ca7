"""Scripts that made the packaged checkpoints, one file per checkpoint: `python -m vader_ray.shapes.train
--help`."""
