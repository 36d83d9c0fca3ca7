"""VideoCrafter2: UNet, scheduler and checkpoint format. The model family is in the module `model`."""
