"""How good a gradient estimator is on a model and a batch: measured against the exact gradient, by autograd."""

from fwdgrad.diagnostics.measure import Diagnosis, NoGradientError, Part, diagnose
from fwdgrad.diagnostics.picture import draw

__all__ = ["Diagnosis", "NoGradientError", "Part", "diagnose", "draw"]
