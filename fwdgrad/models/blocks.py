"""Networks cut into blocks that learn from losses of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn

_POOLED = 4  # a head sees images averaged to this height and width
_PIECE = 8  # units of a part of a head: few enough to be exact with as many directions, enough for matrix products


class LocalBlocks(nn.Module):
    """A chain of blocks, each with a head that makes a prediction of its own from what the block computes.

    The prediction of the last head is the model's output. ``LocalLosses`` trains each block and its head by the loss of
    that prediction alone; any other method trains all blocks through the last head, and leaves the other heads out.

    A head may return its prediction as a sum of parts, (B, p_1, ..., p_n, *output) with n = ``part_dims``. Parts that
    depend on a piece of the block's values each (a patch, a group of channels, a unit) learn with much less noise.

    Args:
        blocks: each takes what the one before it returns.
        heads: one for each block; all return what the last one does, or parts of it.
        part_dims: number of dimensions, behind the batch, to sum a head's parts over.

    Raises:
        ValueError: if there are no blocks, or not as many heads as blocks.

    Source: Ren et al., "Scaling Forward Gradient With Local Losses", 2023, arXiv:2210.03310, section 4; the parts
        are the authors' patch-wise and group-wise losses.
    """

    def __init__(self, blocks: Iterable[nn.Module], heads: Iterable[nn.Module], part_dims: int = 0) -> None:
        super().__init__()
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)
        self.part_dims = part_dims
        if not len(self.blocks) == len(self.heads) > 0:
            raise ValueError(f"each block needs a head, got {len(self.blocks)} blocks and {len(self.heads)} heads")

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.join(self.heads[-1](x))

    def join(self, parts: Tensor) -> Tensor:
        """Return the prediction from the parts that a head returned."""
        return parts.sum(tuple(range(1, 1 + self.part_dims))) if self.part_dims else parts


class GroupLinear(nn.Module):
    """Map each group of features by a matrix of its own: (..., groups, in) to (..., groups, out).

    Args:
        groups: number of groups.
        in_features: width of a group.
        out_features: width of what becomes of it.
    """

    def __init__(self, groups: int, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(groups, out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...gi,goi->...go", x, self.weight) + self.bias


class PartedLinear(nn.Linear):
    """A linear layer that returns what each group of its inputs contributes, (..., groups, out); the sum is its output.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        groups: number of groups of neighbouring inputs.

    Raises:
        ValueError: if the inputs cannot be divided into so many groups.
    """

    def __init__(self, in_features: int, out_features: int, groups: int) -> None:
        if in_features % groups:
            raise ValueError(f"{in_features} features cannot be divided into {groups} groups")
        super().__init__(in_features, out_features)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (self.groups, -1))
        parts = torch.einsum("...gi,ogi->...go", x.unflatten(-1, (self.groups, -1)), weight)
        return parts if self.bias is None else parts + self.bias / self.groups

    @classmethod
    def of(cls, layer: nn.Linear, groups: int) -> PartedLinear:
        """Return a layer that shares the parameters of a plain one."""
        parted = cls(layer.in_features, layer.out_features, groups).to(layer.weight)
        parted.weight, parted.bias = layer.weight, layer.bias
        return parted


def local_blocks(model: nn.Module, inputs: Tensor) -> LocalBlocks:
    """Cut an ``nn.Sequential`` into blocks of one layer with parameters each, and give each block a linear head.

    The model's own last layer becomes the last head, so that the output is the model's. Up to eight units, or a channel
    of an image, make a part of a head's prediction. The model's layers are shared, not copied.

    Args:
        model: a Sequential that ends in an ``nn.Linear``; a ``LocalBlocks`` is returned as it is.
        inputs: a few examples (B, ...), to learn the shapes from.

    Raises:
        TypeError: if the model is of another kind.
    """
    if isinstance(model, LocalBlocks):
        return model
    layers = list(model) if isinstance(model, nn.Sequential) else []
    if not layers or type(layers[-1]) is not nn.Linear:
        raise TypeError(
            f"local losses need a network in blocks, got {type(model).__name__}: only an nn.Sequential that ends in an "
            "nn.Linear is cut into blocks by itself; make the model a fwdgrad.LocalBlocks(blocks, heads), or choose "
            "model=local_mixer"
        )
    starts = [i for i, layer in enumerate(layers[:-1]) if any(True for _ in layer.parameters())]
    # Flattening belongs to the layer after it: a head wants to see the channels.
    cuts = [i - 1 if isinstance(layers[i - 1], nn.Flatten) else i for i in starts[1:]]
    blocks = [nn.Sequential(*layers[a:b]) for a, b in pairwise([0, *cuts, len(layers) - 1])]
    heads: list[nn.Module] = []
    x = inputs
    with torch.no_grad():
        for block in blocks[:-1]:
            x = block(x)
            heads.append(_head(x, layers[-1].out_features))
    last = PartedLinear.of(layers[-1], _groups(layers[-1].in_features))
    return LocalBlocks(blocks, [*heads, last], part_dims=1)


def _head(x: Tensor, classes: int) -> nn.Module:
    """Return a linear head for values such as x, in parts of a few units or a channel."""
    if x.dim() == 4 and min(x.shape[2:]) > _POOLED:
        pool = nn.AdaptiveAvgPool2d(_POOLED)
        return nn.Sequential(pool, nn.Flatten(), PartedLinear(x.shape[1] * _POOLED**2, classes, x.shape[1]))
    groups = _groups(x.shape[1]) if x.dim() == 2 else x.shape[1]
    return nn.Sequential(nn.Flatten(), PartedLinear(x[0].numel(), classes, groups))


def _groups(units: int) -> int:
    return units // math.gcd(units, _PIECE)
