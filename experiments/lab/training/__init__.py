"""One training run, from a RunConfig to weights."""
