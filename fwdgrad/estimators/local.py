"""Local losses: each block of a network learns from the prediction of its own head, and from nothing beyond it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.dual import perturb, perturbed
from fwdgrad.estimators.activity import ActivityPerturbation
from fwdgrad.estimators.base import Estimator, StepRecord
from fwdgrad.estimators.forward_gradient import ForwardGradient
from fwdgrad.functional import Closure, FunctionalModel, check_independent_examples
from fwdgrad.models import LocalBlocks
from fwdgrad.randomness import global_random_state
from fwdgrad.words import check_word

METHODS: dict[str, Callable[..., Estimator]] = {
    "activity": ActivityPerturbation,
    "weights": lambda **options: ForwardGradient(**{"direction": "low_rank", "engine": "dual", **options}),
}
_CHUNK = 256  # outputs of an example whose derivatives are computed at a time


class LocalLosses:
    """Estimate the gradient of each block's own loss with respect to the block and its head.

    The model is a ``LocalBlocks``: blocks ``x_i = block_i(x_{i-1})`` with predictions ``y_i = head_i(x_i)``. The loss
    of block i is the closure's loss with ``y_i`` in the place of the model's output, as a function of the parameters of
    block i and head i alone: ``x_{i-1}`` is a constant, so that nothing crosses a block in either direction. The
    derivative ``g = dL_b / dy_ib`` is exact, one direction for each number in an output, through the closure's loss
    function only. What the estimator inside a block then sees is ``g . head_i(block_i(x_{i-1}))``, which has the same
    gradient; where the head returns parts of its prediction, each part has its own derivative.

    Args:
        method: what estimates the gradient inside a block: ``activity``, ``weights`` (directions in the
            parameters), or a callable that makes an estimator.
        options: arguments of that estimator, such as ``num_directions=8``.

    Raises:
        ValueError: if the method is not known; when called, if the closure returns no per-example losses, does not call
            the model once, or its loss depends on anything of the model besides its output.
        TypeError: when called, if the model is no ``LocalBlocks``.

    Source: Ren et al., "Scaling Forward Gradient With Local Losses", 2023, arXiv:2210.03310, section 4. Their parts
        ("replicated" losses with a stop-gradient) have equal values; these add up to the loss, with the same gradient.
    """

    def __init__(self, method: str | Callable[..., Estimator] = "activity", **options: Any) -> None:
        if isinstance(method, str):
            check_word("method", method, METHODS)
            method = METHODS[method]
        self._make = lambda: method(**options)
        self._make()  # refuse what is wrong with the options now
        self._views: list[_BlockView] = []
        self._estimators: list[Estimator] = []
        self._states: list[dict[str, Any]] = []
        self._modules: list[nn.Module] = []
        self.last: StepRecord | None = None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        """Return the detached loss ``closure(model)`` and accumulate each block's estimate into ``p.grad``.

        Args:
            model: the ``LocalBlocks`` to train.
            closure: called with the model, calls it once and returns per-example losses (B,) of its output.
        """
        blocks = check_blocks(model)
        function = FunctionalModel(blocks, closure)
        check_independent_examples(blocks, "local losses")
        self._prepare(blocks)
        losses, buffers, calls = _record(blocks, function)
        if losses.dim() != 1:
            raise ValueError(
                "local losses need per-example losses: return a vector from the closure, for instance "
                "F.cross_entropy(model(x), y, reduction='none')"
            )
        finished = global_random_state(function.params.values())
        derivatives = []
        for i in reversed(range(len(self._views))):
            view, estimator = self._views[i], self._estimators[i]
            calls[i + 1].replay()
            output = blocks.join(view.predict(calls[i + 1]))
            gradient, values = output_gradient(closure, output)
            if i == len(self._views) - 1 and not torch.allclose(values, losses, equal_nan=True):
                raise ValueError(
                    "the closure's loss must depend on the model through its output only, as in "
                    "F.cross_entropy(model(x), y, reduction='none'); leave penalties to the optimizer's weight_decay"
                )
            if any(param.requires_grad for param in view.parameters()):
                calls[i].replay()
                view.call = calls[i]
                estimator(view, _surrogate(gradient, blocks, in_parts=isinstance(estimator, ActivityPerturbation)))
                if estimator.last is not None and estimator.last.directional_derivatives is not None:
                    derivatives.append(estimator.last.directional_derivatives)
        function.write_buffers({name: buffer for name, buffer in buffers.items() if name.startswith("blocks.")})
        finished()
        self.last = StepRecord(losses, torch.cat(derivatives) if derivatives else None)
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        return {"blocks": [estimator.state_dict() for estimator in self._estimators] or self._states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._states, self._modules = state["blocks"], []

    def _prepare(self, model: LocalBlocks) -> None:
        """Make an estimator for each block, unless they are those of the step before; go on from the state."""
        modules = [*model.blocks, *model.heads]
        if self._modules == modules:
            return
        states = self._states or [estimator.state_dict() for estimator in self._estimators]
        self._views = [_BlockView(i, *pair) for i, pair in enumerate(zip(model.blocks, model.heads, strict=True))]
        self._estimators = [self._make() for _ in self._views]
        if len(states) == len(self._estimators):
            for estimator, state in zip(self._estimators, states, strict=True):
                estimator.load_state_dict(state)
        self._modules, self._states = modules, []


@dataclass(frozen=True)
class _Call:
    """How a block was called in the plain forward pass."""

    inputs: tuple[Any, ...]
    replay: Callable[[], None]
    """Sets PyTorch's random state back to what it was."""
    context: Callable[[], AbstractContextManager[object]]
    """Autocast as it was."""


class _BlockView(nn.Module):
    """One block and its head as a model without arguments; names are those of the block, for messages and noise."""

    call: _Call

    def __init__(self, index: int, block: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self._names = f"block{index}", f"head{index}"
        for name, module in zip(self._names, (block, head), strict=True):
            self.add_module(name, module)

    def forward(self) -> Tensor:
        block, head = (self.get_submodule(name) for name in self._names)
        with self.call.context():
            return head(block(*self.call.inputs))

    def predict(self, call: _Call) -> Tensor:
        """Return the head's prediction from what the block computed, leaving buffers as they are."""
        head = self.get_submodule(self._names[1])
        buffers = {name: buffer.clone() for name, buffer in head.named_buffers()}
        with torch.no_grad(), call.context():
            return torch.func.functional_call(head, buffers, call.inputs)


class _Output(nn.Module):
    """Stands in for the model where only its output counts."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.output


def check_blocks(model: object) -> LocalBlocks:
    """Return the model, or raise TypeError if it is not in blocks."""
    if not isinstance(model, LocalBlocks):
        raise TypeError(
            f"local losses need a model in blocks with a head each, got {type(model).__name__}; make it a "
            "fwdgrad.LocalBlocks(blocks, heads), or cut an nn.Sequential by fwdgrad.local_blocks(model, inputs), as "
            "optimization=local and fwdgrad.fit do"
        )
    return model


def output_gradient(closure: Closure, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact derivative of each example's loss by the model's output, (B, ...), and the losses (B,)."""
    columns = []
    for chunk in torch.eye(output[0].numel(), dtype=output.dtype, device=output.device).split(_CHUNK):
        basis = chunk.view(-1, 1, *output.shape[1:]).expand(-1, *output.shape)

        def fn(basis: Tensor = basis) -> tuple[Tensor, None]:
            return closure(_Output(perturb(output, basis))), None

        losses, derivatives, _ = perturbed(fn)
        columns.append(derivatives)
    return torch.cat(columns).T.reshape(output.shape), losses


def _surrogate(gradient: Tensor, blocks: LocalBlocks, in_parts: bool) -> Closure:
    """Return per-example losses ``g . prediction`` of a view, (B,), or with the head's parts, (B, p_1, ..., p_n)."""
    lead = 1 + blocks.part_dims
    gradient = gradient.view(gradient.shape[0], *[1] * blocks.part_dims, *gradient.shape[1:])

    def losses(view: nn.Module) -> Tensor:
        weighted = view() * gradient
        kept = lead if in_parts else 1
        return weighted.reshape(*weighted.shape[:kept], -1).sum(-1)

    return losses


def _record(model: LocalBlocks, function: FunctionalModel) -> tuple[Tensor, Any, list[_Call]]:
    """Run the function plainly; return the losses, the buffers, and how each block and the last head were called."""
    calls: list[_Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)
        device = next((value.device.type for value in inputs if isinstance(value, Tensor)), "cpu")
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        context = partial(torch.autocast, device, dtype=dtype, enabled=enabled)
        calls.append(_Call(inputs, global_random_state(inputs), context))

    handles = [module.register_forward_pre_hook(hook) for module in {*model.blocks, model.heads[-1]}]
    try:
        with torch.no_grad():
            losses, buffers = function(function.params)
    finally:
        for handle in handles:
            handle.remove()
    needed = len(model.blocks) + 1
    if len(calls) != needed:
        raise ValueError(
            "local losses need a closure that calls the model once and a model that calls its blocks in turn: "
            f"{needed} calls of blocks and the last head, got {len(calls)}"
        )
    return losses, buffers, calls
