"""Train PyTorch models without backpropagation, by forward gradients."""

from fwdgrad.estimators import Backprop, Estimator, ForwardGradient, GradientEstimate, forward_gradient

__version__ = "0.1.0"

__all__ = ["Backprop", "Estimator", "ForwardGradient", "GradientEstimate", "__version__", "forward_gradient"]
