"""Connectionist temporal classification: the tangent of the forward recursion.

With the log-probability ``alpha_t(s)`` of all prefixes that end, at time t, at place s of the target with blanks
between (Graves et al., 2006, section 4.1),

    alpha_t(s) = logsumexp_j alpha_{t-1}(s - j) + x_t(label_s),     j = 0, 1 and, between different labels, 2,

the tangent follows with the softmax weights of that sum: ``t_alpha_t(s) = sum_j w_j t_alpha_{t-1}(s - j) + tx``. This
is the derivative by the log-probabilities as free variables; PyTorch's gradient differs from it by a multiple of
``exp(x)``, which a ``log_softmax`` in front takes away.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import dual, tangent

_NONE, _MEAN = 0, 1


@rule(torch.ctc_loss)
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = _MEAN,
    zero_infinity: bool = False,
) -> Tensor:
    """Push the recursion, then what the reduction does; an infinite loss that is set to zero has no tangent."""
    y = torch.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
    t = tangent(log_probs)
    if t is None:
        return y
    x = log_probs.detach()
    if x.dim() == 2:
        x, t = x.unsqueeze(1), t.unsqueeze(2)
    lengths = torch.as_tensor(input_lengths, device=x.device).reshape(-1)
    sizes = torch.as_tensor(target_lengths, device=x.device).reshape(-1)
    labels = _with_blanks(targets.to(x.device), sizes, blank)
    losses, pushed = _recursion(x, t, labels, lengths, sizes, blank)
    if zero_infinity:
        pushed = pushed.masked_fill(losses.isinf(), 0.0)
    if reduction == _MEAN:
        pushed = (pushed / sizes.clamp(min=1)).mean(-1)
    elif reduction != _NONE:
        pushed = pushed.sum(-1)
    return dual(y, pushed.reshape(t.shape[0], *y.shape))


def _with_blanks(targets: Tensor, sizes: Tensor, blank: int) -> Tensor:
    """Return the labels (N, 2 S + 1) with blanks around each, from padded or concatenated targets."""
    longest = int(sizes.max())
    if targets.dim() == 1:
        pieces = targets.split(sizes.tolist())
        padded = torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True, padding_value=blank)
    else:
        padded = targets[:, :longest]
    labels = padded.new_full((len(sizes), 2 * longest + 1), blank)
    labels[:, 1::2] = padded
    return labels


def _recursion(
    x: Tensor, t: Tensor, labels: Tensor, lengths: Tensor, sizes: Tensor, blank: int
) -> tuple[Tensor, Tensor]:
    """Return the losses (N,) and their tangents (K, N)."""
    count = t.shape[0]
    emitted = x.gather(2, labels.expand(x.shape[0], -1, -1))
    moved = t.gather(3, labels.expand(count, x.shape[0], -1, -1))
    skips = torch.zeros_like(labels, dtype=torch.bool)
    skips[:, 2:] = (labels[:, 2:] != blank) & (labels[:, 2:] != labels[:, :-2])
    alpha = torch.full_like(emitted[0], -math.inf)
    alpha[:, :2] = emitted[0, :, :2]
    pushed = torch.zeros_like(moved[:, 0])
    pushed[..., :2] = moved[:, 0, :, :2]
    for step in range(1, x.shape[0]):
        ways = torch.stack([alpha, _shifted(alpha, 1), _shifted(alpha, 2).masked_fill(~skips, -math.inf)])
        weights = _weights(ways)
        came = weights[0] * pushed
        came[..., 1:] += (weights[1] * _shifted(pushed, 1, 0.0))[..., 1:]
        came[..., 2:] += (weights[2] * _shifted(pushed, 2, 0.0))[..., 2:]
        running = (step < lengths).unsqueeze(1)
        alpha = torch.where(running, ways.logsumexp(0) + emitted[step], alpha)
        pushed = torch.where(running, came + moved[:, step], pushed)
    last = 2 * sizes.unsqueeze(1)
    ends = torch.cat((last, (last - 1).clamp(min=0)), 1)
    finals = alpha.gather(1, ends)
    finals[:, 1] = finals[:, 1].masked_fill(sizes == 0, -math.inf)
    weights = _weights(finals.t()).t()
    return -finals.logsumexp(1), -(weights * pushed.gather(2, ends.expand(count, -1, -1))).sum(-1)


def _shifted(x: Tensor, places: int, value: float = -math.inf) -> Tensor:
    """Move the last dimension to the right; what comes in from the left is log 0, or ``value``."""
    return torch.nn.functional.pad(x, (places, 0), value=value)[..., : x.shape[-1]]


def _weights(ways: Tensor) -> Tensor:
    """Return the softmax over the first dimension, 0 where nothing is possible."""
    return torch.softmax(ways, 0).masked_fill(ways.isneginf().all(0), 0.0)
