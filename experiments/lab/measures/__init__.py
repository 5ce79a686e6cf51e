"""Measurements of finished runs: the sharpness package on stored weights."""
