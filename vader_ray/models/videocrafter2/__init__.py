"""VideoCrafter2: its UNet, scheduler and checkpoint format, which diffusers does not have."""

from vader_ray.models.videocrafter2.model import Model

__all__ = ["Model"]
