"""Losses in parts (B, p_1, ..., p_n): which parts a layer's outputs have influence on, and how its noise is told apart.

Dimension i of a layer's output z (B, d_1, ..., d_m) is thought of as p_i equal pieces, each with influence on the part
of the losses of the same index only, where that is so. Then one direction e in all of z tells the derivatives of all
parts at once, and the estimate of ``dL/dz`` has in each piece the variance of that piece alone.
"""

from __future__ import annotations

import itertools
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


def find_parts(shape: torch.Size, counts: tuple[int, ...], derive: Callable[[Tensor], Tensor]) -> tuple[int, ...]:
    """Find out in which dimensions the pieces of an output have influence on their own part of the losses only.

    A direction that is zero in some pieces must leave the losses of these indices unchanged. For any two pieces there
    is a direction that is zero in the second alone, which tells whether the first has influence there.

    Args:
        shape: shape of the output, (B, d_1, ..., d_m).
        counts: numbers of the parts of the losses, (p_1, ..., p_n); 1 for a dimension that need not be looked at.
        derive: the derivatives of the losses (K, B, p_1, ..., p_n) along directions (K, *shape).

    Returns:
        For each dimension p_i where that is so, else 1.
    """
    found = [1] * len(counts)
    for i, count in enumerate(counts[: len(shape) - 1]):
        if count == 1 or shape[1 + i] % count:
            continue
        masks = separating_masks(count)
        spread = masks.repeat_interleave(shape[1 + i] // count, 1)
        noise = KeyedGenerator(0, i, range(len(masks))).normal("parts", torch.empty(shape))
        noise *= spread.view(len(masks), *[1] * (1 + i), -1, *[1] * (len(shape) - 2 - i))
        unmoved = ~masks.view(len(masks), *[1] * (1 + i), -1, *[1] * (len(counts) - 1 - i))
        if not (derive(noise).cpu().ne(0) & unmoved).any():
            found[i] = count
    return tuple(found)


def separating_masks(count: int) -> Tensor:
    """Return a few sets of indices below count, (sets, count), such that for any i and j one has i and not j.

    Each index is in half of the sets, no two in the same ones: neither is then wherever the other is (Sperner 1928).
    """
    sets = next(m for m in itertools.count(1) if math.comb(m, m // 2) >= count)
    masks = torch.zeros(sets, count, dtype=torch.bool)
    for index, members in enumerate(itertools.islice(itertools.combinations(range(sets), sets // 2), count)):
        masks[list(members), index] = True
    return masks
