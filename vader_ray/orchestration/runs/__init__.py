"""One run: launch, worker, run directory, storage, query log, progress."""
