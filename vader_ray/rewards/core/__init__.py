"""Code that rewards share: contract, preprocessing, CLIP, loading of weights."""
