"""Modules of a user's own, named by ``model._target_`` in the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def dropout_net(input_shape: list[int], num_classes: int) -> nn.Sequential:
    width = int(torch.tensor(list(input_shape)).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, num_classes))


def batch_norm_net(input_shape: list[int], num_classes: int) -> nn.Sequential:
    width = int(torch.tensor(list(input_shape)).prod())
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, num_classes))


def frozen_net(input_shape: list[int], num_classes: int) -> nn.Module:
    return dropout_net(input_shape, num_classes).requires_grad_(False)


class Refuses(nn.Module):
    """Raises what a user's forward may raise."""

    def __init__(self, input_shape: list[int], num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        raise IndexError("no such layer")


def no_module(input_shape: list[int], num_classes: int) -> int:
    return num_classes


class Wrapped(nn.Module):
    """A network that is no Sequential."""

    def __init__(self, input_shape: list[int], num_classes: int) -> None:
        super().__init__()
        self.layer = dropout_net(input_shape, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)


class Kink(nn.Module):
    """A linear classifier with a parameter that leaves the loss as it is, at an infinite slope."""

    def __init__(self, input_shape: list[int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, num_classes)
        self.kink = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs.flatten(1)) + self.kink.abs().sqrt()
