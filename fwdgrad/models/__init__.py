"""Networks that fit every dataset: built from the shape of an example and the number of classes."""

from fwdgrad.models.blocks import GroupLinear, LocalBlocks, PartedLinear, local_blocks
from fwdgrad.models.mixer import local_mixer
from fwdgrad.models.networks import conv, conv_small, logistic, mlp
from fwdgrad.models.vision import torchvision_classifier

__all__ = [
    "GroupLinear",
    "LocalBlocks",
    "PartedLinear",
    "conv",
    "conv_small",
    "local_blocks",
    "local_mixer",
    "logistic",
    "mlp",
    "torchvision_classifier",
]
