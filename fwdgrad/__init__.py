"""Train PyTorch models without backpropagation, by forward gradients."""

from fwdgrad.diagnosis import check_model
from fwdgrad.estimators import (
    ActivityPerturbation,
    Backprop,
    Estimator,
    ForwardGradient,
    GradientEstimate,
    ZerothOrder,
    forward_gradient,
)
from fwdgrad.fit import fit

__version__ = "0.1.0"

__all__ = [
    "ActivityPerturbation",
    "Backprop",
    "Estimator",
    "ForwardGradient",
    "GradientEstimate",
    "ZerothOrder",
    "__version__",
    "check_model",
    "fit",
    "forward_gradient",
]
