"""Remote rewards: rewards that Ray actors compute, on another GPU, on another node, or once for all trials of
a sweep."""
