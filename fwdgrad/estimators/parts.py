"""Losses in parts (B, p_1, ..., p_n): which parts a layer's outputs have influence on, and how its noise is told apart.

Dimension i of a layer's output z (B, d_1, ..., d_m) is thought of as p_i equal pieces, each with influence on the part
of the losses of the same index only, where that is so. Then one direction e in all of z tells the derivatives of all
parts at once, and the estimate of ``dL/dz`` has in each piece the variance of that piece alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fwdgrad.randomness import KeyedGenerator


def sum_parts(losses: Tensor, lead: int = 1) -> Tensor:
    """Add up the losses (B, ...) of the parts of each example."""
    return losses if losses.dim() <= lead else losses.flatten(lead).sum(lead)


def pieces(shape: torch.Size, parts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return, for each dimension of an output (B, d_1, ..., d_m), how many pieces it is cut into, and their size."""
    counts = (*parts, *[1] * len(shape))[: len(shape) - 1]
    return [(count, size // count) for count, size in zip(counts, shape[1:], strict=True)]


def piece_size(shape: torch.Size, parts: tuple[int, ...]) -> int:
    """Return the number of values of one example in a piece of an output."""
    return math.prod(size for _, size in pieces(shape, parts))


def weigh(derivatives: Tensor, noise: Tensor, parts: tuple[int, ...]) -> Tensor:
    """Return ``sum_k s_k e_k`` with, for each piece of the noise, the derivative of the losses it has influence on.

    Args:
        derivatives: s of the losses, (K, B, p_1, ..., p_n).
        noise: e, (K, B, d_1, ..., d_m).
        parts: for each dimension of the parts, the number of pieces; 1 if they do not correspond.
    """
    for i, count in enumerate(parts):
        if count == 1:
            derivatives = derivatives.sum(2 + i, keepdim=True)
    batch, cuts = noise.shape[1], pieces(noise.shape[1:], parts)
    sizes = [batch, *(number for cut in cuts for number in cut)]
    ratios = [batch, *(number for count, _ in cuts for number in (count, 1))]
    total = torch.zeros(sizes, dtype=derivatives.dtype, device=derivatives.device)
    for s, e in zip(derivatives, noise, strict=True):
        total.addcmul_(s.reshape(ratios), e.reshape(sizes).to(s.dtype))
    return total.view(noise.shape[1:])


def piece_basis(output: Tensor, parts: tuple[int, ...]) -> Tensor:
    """Return one direction for each value of a piece, the same in all pieces: (values of a piece, *output.shape)."""
    cuts = pieces(output.shape, parts)
    width = math.prod(size for _, size in cuts)
    basis = torch.eye(width, dtype=output.dtype, device=output.device)
    basis = basis.view(width, 1, *(number for _, size in cuts for number in (1, size)))
    basis = basis.expand(width, 1, *(number for cut in cuts for number in cut))
    return basis.reshape(width, 1, *output.shape[1:]).expand(width, *output.shape)


def find_parts(shape: torch.Size, counts: torch.Size, derive: Callable[[Tensor], Tensor]) -> tuple[int, ...]:
    """Find out in which dimensions the pieces of an output have influence on their own part of the losses only.

    Directions that are zero in the pieces whose index has a certain bit must leave the losses of these indices
    unchanged: any two pieces differ in some bit, so one of the directions tells on a piece that has influence on
    another.

    Args:
        shape: shape of the output, (B, d_1, ..., d_m).
        counts: numbers of the parts of the losses, (p_1, ..., p_n).
        derive: the derivatives of the losses (K, B, p_1, ..., p_n) along directions (K, *shape).

    Returns:
        For each dimension p_i where that is so, else 1.
    """
    found = [1] * len(counts)
    for i, count in enumerate(counts[: len(shape) - 1]):
        if count == 1 or shape[1 + i] % count:
            continue
        masks = _bit_masks(count)
        inner = shape[1 + i] // count
        mask = masks.repeat_interleave(inner, 1).view(len(masks), *[1] * (1 + i), -1, *[1] * (len(shape) - 2 - i))
        noise = KeyedGenerator(0, i, range(len(masks))).normal("parts", torch.empty(shape))
        unmoved = ~masks.view(len(masks), *[1] * (1 + i), -1, *[1] * (len(counts) - 1 - i))
        derivatives = derive(noise * mask).cpu()
        if not (derivatives.ne(0) & unmoved).any():
            found[i] = count
    return tuple(found)


def _bit_masks(count: int) -> Tensor:
    """Return, for each bit of the indices below count, which of them have it, and which do not: (2 * bits, count)."""
    bits = torch.arange(count) >> torch.arange((count - 1).bit_length()).unsqueeze(1) & 1
    return torch.cat([bits, 1 - bits]).bool()
