"""Sharpness and curvature of any PyTorch model: what is measured, how exactly, and with what certificate."""

from sharpness.cost import CostEstimate, cost_estimate
from sharpness.flatness.average_case import AverageCaseSharpness, average_case_sharpness
from sharpness.flatness.basin import BasinRadius, LocalEntropy, basin_radius, local_entropy
from sharpness.flatness.keskar import EpsilonSharpness, SharpnessStart, epsilon_sharpness
from sharpness.flatness.pac_bayes import PacBayesSigma, pac_bayes_sigma
from sharpness.flatness.perturbation import RandomPerturbation, random_perturbation
from sharpness.flatness.scale_aware import FisherRaoNorm, NormScaled, RelativeTrace, fisher_rao_norm, norm_scaled, relative_trace
from sharpness.flatness.worst_case import WorstCaseSharpness, worst_case_sharpness
from sharpness.gradients.activations import add_offset
from sharpness.gradients.alignment import BatchSharpness, GradientHessianOverlap, batch_sharpness, gradient_hessian_overlap
from sharpness.gradients.noise import GradientNoise, NoiseScale, gradient_noise, noise_scale_from_batches
from sharpness.landscape.directions import filter_normalise, random_direction
from sharpness.landscape.grid import Slice2D, slice_2d
from sharpness.landscape.paths import Connection, barrier, connect
from sharpness.landscape.planes import Plane, Trajectory, plane_through, trajectory_directions
from sharpness.landscape.slices import Slice1D, slice_1d
from sharpness.linalg.consistency import contradictions
from sharpness.linalg.density import SpectralDensity, spectral_density
from sharpness.linalg.diagonal import Diagonal, diagonal
from sharpness.linalg.eigen import Eigenvalues, top_eigenvalues
from sharpness.linalg.traces import EffectiveRank, FrobeniusNorm, Trace, effective_rank, frobenius_norm, trace
from sharpness.operators.curvature import fisher, ggn, hessian
from sharpness.operators.curvature_operator import CurvatureOperator
from sharpness.operators.verification import OperatorCheck
from sharpness.panels import Measured, panel
from sharpness.problem.parameters import flat_weights, layers, named_tensors
from sharpness.problem.recalibration import recalibrate_batch_norm
from sharpness.problem.result import Result

__version__ = "0.1.0"
__all__ = [
    "AverageCaseSharpness",
    "BasinRadius",
    "BatchSharpness",
    "Connection",
    "CostEstimate",
    "CurvatureOperator",
    "Diagonal",
    "EffectiveRank",
    "Eigenvalues",
    "EpsilonSharpness",
    "FisherRaoNorm",
    "FrobeniusNorm",
    "GradientHessianOverlap",
    "GradientNoise",
    "LocalEntropy",
    "Measured",
    "NoiseScale",
    "NormScaled",
    "OperatorCheck",
    "PacBayesSigma",
    "Plane",
    "RandomPerturbation",
    "RelativeTrace",
    "Result",
    "SharpnessStart",
    "Slice1D",
    "Slice2D",
    "SpectralDensity",
    "Trace",
    "Trajectory",
    "WorstCaseSharpness",
    "add_offset",
    "average_case_sharpness",
    "barrier",
    "basin_radius",
    "batch_sharpness",
    "connect",
    "contradictions",
    "cost_estimate",
    "diagonal",
    "effective_rank",
    "epsilon_sharpness",
    "filter_normalise",
    "fisher",
    "fisher_rao_norm",
    "flat_weights",
    "frobenius_norm",
    "ggn",
    "gradient_hessian_overlap",
    "gradient_noise",
    "hessian",
    "layers",
    "local_entropy",
    "named_tensors",
    "noise_scale_from_batches",
    "norm_scaled",
    "pac_bayes_sigma",
    "panel",
    "plane_through",
    "random_direction",
    "random_perturbation",
    "recalibrate_batch_norm",
    "relative_trace",
    "slice_1d",
    "slice_2d",
    "spectral_density",
    "top_eigenvalues",
    "trace",
    "trajectory_directions",
    "worst_case_sharpness",
]
