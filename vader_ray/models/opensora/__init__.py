"""Open-Sora 1.2: denoiser, autoencoder, scheduler and weights. The model family is in the module `model`."""
