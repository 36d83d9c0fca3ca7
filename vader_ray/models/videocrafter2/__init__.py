"""VideoCrafter2: UNet, scheduler and checkpoint format, which diffusers does not have. The family is in `model`."""
