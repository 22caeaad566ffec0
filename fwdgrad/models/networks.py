"""The networks of the forward-gradient paper and a small convolutional one, for any input shape and number of classes.

Source: Baydin, Pearlmutter, Syme, Wood and Torr (2022), "Gradients without Backpropagation", arXiv:2202.08587,
section 5: logistic regression, the multi-layer perceptron and the convolutional network of the MNIST experiments.
Each network returns logits of shape (B, num_classes).

Weights start as PyTorch initialises them (``init="pytorch"``): each layer makes values smaller, gradients are small at
first, and a direction in the weights spends a thousand steps or more on leaving that plateau. ``init="kaiming"`` keeps
their size: ``N(0, 2 / fan_in)`` in front of a ReLU, ``N(0, 1 / fan_in)`` in the last layer, biases zero (He et al.
2015, "Delving Deep into Rectifiers", arXiv:1502.01852, section 2.2). Gradients are larger then, learning rates smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fwdgrad.words import check_word


def logistic(input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """Build logistic regression: one linear layer on the flattened input.

    Args:
        input_shape: shape of one example, such as (1, 28, 28).
        num_classes: number of logits.

    Raises:
        ValueError: if a size is not positive.
    """
    return mlp(input_shape, num_classes, hidden=())


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] = (1024, 1024),
    dropout: float = 0.0,
    init: str = "pytorch",
) -> nn.Sequential:
    """Build a multi-layer perceptron on the flattened input, with a ReLU after every hidden layer.

    Args:
        input_shape: shape of one example, such as (1, 28, 28).
        num_classes: number of logits.
        hidden: widths of the hidden layers; the paper's network has two of 1024.
        dropout: probability with which a hidden value is dropped in training; 0: no dropout layers.
        init: ``pytorch`` or ``kaiming``, how the weights start.

    Raises:
        ValueError: if a size is not positive, dropout not from 0 to 1, 1 excluded, or ``init`` not known.
    """
    check_sizes("input_shape", input_shape)
    check_sizes("hidden", hidden)
    check_size("num_classes", num_classes)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number from 0 to 1, 1 excluded, got {dropout!r}")
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = size
    return _started(nn.Sequential(*layers, nn.Linear(width, num_classes)), init)


def conv(
    input_shape: Sequence[int], num_classes: int, channels: int = 64, hidden: int = 1024, init: str = "pytorch"
) -> nn.Sequential:
    """Build the paper's convolutional network.

    Four 3x3 convolutions with padding 1 and a ReLU after each, 2x2 max-pooling after the second and the fourth, then a
    linear layer, ReLU, and a linear layer to the logits. The paper does not state the padding: with 1, feature maps
    keep their size but for the pooling, so that 8x8 images fit as well.

    Args:
        input_shape: shape (C, H, W) of one image, with H and W at least 4.
        num_classes: number of logits.
        channels: output channels of each convolution; the paper has 64.
        hidden: width of the first linear layer; the paper has 1024.
        init: ``pytorch`` or ``kaiming``, how the weights start.

    Raises:
        ValueError: if the input is not an image of at least 4x4, a size is not positive, or ``init`` not known.
    """
    check_sizes("input_shape", input_shape)
    check_size("num_classes", num_classes)
    check_size("channels", channels)
    check_size("hidden", hidden)
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ValueError(
            f"conv needs input_shape (channels, height, width) with images of at least 4x4, got {tuple(input_shape)}; "
            "mlp takes inputs of any shape"
        )
    in_channels, height, width = input_shape
    network = nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels * (height // 4) * (width // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    return _started(network, init)


def conv_small(
    input_shape: Sequence[int],
    num_classes: int,
    channels: Sequence[int] = (16, 32),
    hidden: int = 128,
    init: str = "pytorch",
) -> nn.Sequential:
    """Build a small convolutional network that forward gradients can train in minutes on a CPU.

    5x5 convolutions of stride 2 with a ReLU after each, then a linear layer, ReLU, and a linear layer to the logits.
    Strides instead of pooling keep the number of values to perturb small.

    Args:
        input_shape: shape (C, H, W) of one image; H and W must leave at least one position after the convolutions.
        num_classes: number of logits.
        channels: output channels of each convolution.
        hidden: width of the first linear layer.
        init: ``pytorch`` or ``kaiming``, how the weights start.

    Raises:
        ValueError: if the input is not an image, or too small, a size is not positive, or ``init`` not known.
    """
    check_sizes("input_shape", input_shape)
    check_sizes("channels", channels)
    check_size("num_classes", num_classes)
    check_size("hidden", hidden)
    if len(input_shape) != 3:
        raise ValueError(f"conv_small needs input_shape (channels, height, width), got {tuple(input_shape)}")
    width, *image = input_shape
    layers: list[nn.Module] = []
    for size in channels:
        layers += [nn.Conv2d(width, size, 5, stride=2, padding=1), nn.ReLU()]
        image = [(side - 3) // 2 + 1 for side in image]
        width = size
    if min(image) < 1:
        raise ValueError(
            f"conv_small needs larger images for {len(channels)} convolutions of 5x5 and stride 2, "
            f"got input_shape {tuple(input_shape)}"
        )
    network = nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(width * math.prod(image), hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    return _started(network, init)


def _started(network: nn.Sequential, init: str) -> nn.Sequential:
    """Return the network with its weights as ``init`` says; all its layers but the last are followed by a ReLU."""
    check_word("init", init, ("pytorch", "kaiming"))
    if init == "kaiming":
        *hidden, last = [layer for layer in network if isinstance(layer, nn.Linear | nn.Conv2d)]
        for layer in (*hidden, last):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if layer is last else "relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Raise ValueError unless ``sizes`` is a sequence of positive integers."""
    listed = list(sizes) if isinstance(sizes, Sequence) else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in listed):
        raise ValueError(f"{name} must be positive integers, such as [32], got {sizes!r}")


def check_size(name: str, size: int) -> None:
    """Raise ValueError unless ``size`` is a positive integer."""
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")
