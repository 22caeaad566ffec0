"""Networks that fit every dataset: built from the shape of an example and the number of classes."""

from fwdgrad.models.networks import conv, logistic, mlp
from fwdgrad.models.vision import torchvision_classifier

__all__ = ["conv", "logistic", "mlp", "torchvision_classifier"]
