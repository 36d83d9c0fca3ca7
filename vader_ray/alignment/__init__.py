"""The algorithms in plain PyTorch: no files, no Ray, no diffusers."""
