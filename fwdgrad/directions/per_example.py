"""Directions in which every example of a batch is perturbed on its own."""

from __future__ import annotations

from torch import Tensor

from fwdgrad import tangents
from fwdgrad.directions.base import Params, real_or_raise
from fwdgrad.randomness import KeyedGenerator


class PerExample:
    """Each example b of the batch has its own rank-1 signs: ``v_b = a_b c_b^T``, or ``a_b`` for a vector parameter.

    The estimate is ``1/B sum_b (g_b . v_b) v_b`` with the gradients ``g_b`` of the per-example losses: unbiased, since
    ``E[v_b v_b^T] = I`` for each b. For a given batch with mean gradient ``g`` its second moment is
    ``|g|^2 + (P - 1) / B mean_b |g_b|^2``. Averaged over batches of independent examples with gradient covariance S it
    is about ``P (|g|^2 + tr S) / B``, where one shared direction has ``P (|g|^2 + tr S / B)``: never more.
    The closure must return a vector of per-example losses, and every activation must have the batch as its first
    dimension. No example's loss may depend on another example's activations: under BatchNorm in training mode, or a
    loss that contrasts examples, the estimate lacks the terms between examples and is biased.

    Source: the idea of decorrelated weight perturbations by rank-1 signs is that of Wen et al., "Flipout", 2018,
    arXiv:1803.04386, used here with forward-mode derivatives.
    """

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, tangents.PerExample]:
        return {name: _per_example(name, real_or_raise(name, param), generator) for name, param in params.items()}


def _per_example(name: str, param: Tensor, generator: KeyedGenerator) -> tangents.PerExample:
    shape, k = param.shape, len(generator.indices)
    dtype, device = param.dtype, param.device

    def draw(batch_size: int) -> tuple[Tensor, Tensor | None]:
        if len(shape) < 2:
            signs = generator.signs(name, batch_size * shape.numel(), dtype, device)
            return signs.view(k, batch_size, *shape), None
        n, m = shape[0], shape[1:].numel()
        left = generator.signs(f"{name}/left", batch_size * n, dtype, device)
        right = generator.signs(f"{name}/right", batch_size * m, dtype, device)
        return left.view(k, batch_size, n), right.view(k, batch_size, *shape[1:])

    return tangents.PerExample(shape, k, draw)
