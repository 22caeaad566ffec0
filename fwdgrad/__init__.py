"""Train PyTorch models without backpropagation, by forward gradients."""

from fwdgrad.estimators import (
    ActivityPerturbation,
    Backprop,
    Estimator,
    ForwardGradient,
    GradientEstimate,
    LocalLosses,
    ZerothOrder,
    forward_gradient,
)
from fwdgrad.fit import fit
from fwdgrad.model_check import check_model
from fwdgrad.models import LocalBlocks, local_blocks

__version__ = "0.1.0"

__all__ = [
    "ActivityPerturbation",
    "Backprop",
    "Estimator",
    "ForwardGradient",
    "GradientEstimate",
    "LocalBlocks",
    "LocalLosses",
    "ZerothOrder",
    "__version__",
    "check_model",
    "fit",
    "forward_gradient",
    "local_blocks",
]
