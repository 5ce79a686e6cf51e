"""Several runs as one program, and whole updates as CUDA graphs. Nothing else needs this room."""
