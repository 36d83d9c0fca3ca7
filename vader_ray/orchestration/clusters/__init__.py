"""Ray clusters: connection, preemption, cluster files."""
