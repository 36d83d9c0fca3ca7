"""Remote rewards: Ray actors compute them on another GPU or node, or once for all trials of a sweep."""
