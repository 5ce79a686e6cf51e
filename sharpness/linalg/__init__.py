"""Algorithms on any symmetric operator: eigenvalues, traces, densities, diagonals."""
