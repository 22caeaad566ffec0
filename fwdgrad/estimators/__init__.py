"""Gradient estimators, one per file, all called in place of ``loss.backward()``."""

from fwdgrad.estimators.activity import ActivityPerturbation
from fwdgrad.estimators.backprop import Backprop
from fwdgrad.estimators.base import Estimator, StepRecord
from fwdgrad.estimators.forward_gradient import ForwardGradient, GradientEstimate, forward_gradient
from fwdgrad.estimators.local import LocalLosses
from fwdgrad.estimators.zeroth_order import ZerothOrder

__all__ = [
    "ActivityPerturbation",
    "Backprop",
    "Estimator",
    "ForwardGradient",
    "GradientEstimate",
    "LocalLosses",
    "StepRecord",
    "ZerothOrder",
    "forward_gradient",
]
