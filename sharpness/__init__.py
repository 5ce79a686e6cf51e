"""Sharpness and curvature of any PyTorch model: what is measured, how exactly, and with what certificate."""

from sharpness.curvature import HessianOperator, hessian
from sharpness.eigen import Eigenvalues, top_eigenvalues
from sharpness.keskar import EpsilonSharpness, SharpnessStart, epsilon_sharpness
from sharpness.slices import Slice1D, slice_1d

__all__ = [
    "Eigenvalues",
    "EpsilonSharpness",
    "HessianOperator",
    "SharpnessStart",
    "Slice1D",
    "epsilon_sharpness",
    "hessian",
    "slice_1d",
    "top_eigenvalues",
]
