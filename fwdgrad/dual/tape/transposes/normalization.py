"""The maps that layer and group normalisation apply to the tangent of their input are symmetric."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fwdgrad.dual.folding import layout_of
from fwdgrad.dual.tape.table import aten, transpose

for _op in (aten.native_layer_norm_backward, aten.native_group_norm_backward):

    def _pull(us: Any, x: Any, *rest: Any, op: Any = _op) -> Tensor:
        return op(us[0].contiguous(memory_format=layout_of(rest[0])), *rest)[0]

    transpose(_op, _pull)


def _negative_log_likelihood(forward: Any, backward: Any) -> None:
    def pull(us: Any, x: Any, *rest: Any) -> Tensor:
        """Pick: PyTorch's kernel for the transpose wants the total weight, which does not depend on x."""
        zero = us[0].new_zeros(x.shape)
        return backward(us[0], zero, *rest, forward(zero, *rest)[1])

    def shape(x: Any, target: Any, weight: Any, reduction: int, ignore_index: int) -> list[Any]:
        return [target.shape if reduction == 0 else (), ()]

    transpose(forward, pull, shape=shape)


_negative_log_likelihood(aten.nll_loss_forward.default, aten.nll_loss_backward.default)
_negative_log_likelihood(aten.nll_loss2d_forward.default, aten.nll_loss2d_backward.default)
