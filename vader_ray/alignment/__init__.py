"""The algorithms: plain PyTorch, no input or output, no Ray, no diffusers."""
