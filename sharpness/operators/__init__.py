"""Curvature matrices as operators: how their products are computed, replayed and checked."""
