"""LoRA adapters: layers, files, export to other programs, weighted merge."""
