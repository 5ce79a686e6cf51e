"""Gradients of single examples, their noise, and how they lie in the curvature."""
