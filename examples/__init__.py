"""Examples: scripts to read and to start from."""
