"""The exact gradient by reverse mode: the rival every other method is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fwdgrad.dual.reverse import Tape
from fwdgrad.dual.sharing import ALONE, holders
from fwdgrad.estimators.base import StepRecord
from fwdgrad.functional import BoundModel, Closure, FunctionalModel, check_loss, check_trainable

ENGINES = ("autograd", "tape")


class Backprop:
    """Compute the exact gradient by reverse mode.

    Args:
        engine: "autograd", PyTorch's, which no other estimator uses; or "tape", which transposes the tangents of
            ``fwdgrad.dual`` and creates no autograd node.
        compile: run the forward and the backward pass of autograd through ``torch.compile(fullgraph=True)``.

    Raises:
        ValueError: if the engine is unknown, or "tape" is to be compiled; when called: if the model has no trainable
            parameter, or the loss has more than one dimension.
    """

    def __init__(self, engine: str = "autograd", compile: bool = False) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {ENGINES}, got {engine!r}")
        if compile and engine == "tape":
            raise ValueError("engine='tape' cannot be compiled; use engine='autograd', or compile=False")
        self.engine = engine
        self._bound: BoundModel | None = None
        options: dict[str, Any] = {"fallback_random": True}
        self._losses = torch.compile(_losses, fullgraph=True, options=options) if compile else _losses
        self.last: StepRecord | None = None

    def __call__(self, model: nn.Module, closure: Closure) -> Tensor:
        """Return the detached loss ``closure(model)`` and accumulate its gradient into ``p.grad``."""
        if self.engine == "tape":
            return self._by_tape(model, closure)
        check_trainable(model)
        losses = self._losses(model, closure)
        loss = losses.mean()
        loss.backward()
        self.last = StepRecord(losses.detach())
        return loss.detach()

    def _by_tape(self, model: nn.Module, closure: Closure) -> Tensor:
        fn = FunctionalModel(model, closure, self._bound)
        self._bound = fn.bound
        names = list(fn.params)
        tape = Tape(lambda duals: fn(dict(zip(names, duals, strict=True))), list(fn.params.values()))
        losses = tape.outputs[0]
        gradients = tape.pull_back([torch.full_like(losses, 1 / losses.numel())])
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                _accumulate(fn.parameters[name], gradient)
        fn.write_buffers(tape.aux)
        self.last = StepRecord(losses)
        return losses.mean()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _accumulate(param: Tensor, gradient: Tensor) -> None:
    """Add to ``param.grad``; a first gradient becomes it, in memory of its own and in the parameter's layout."""
    with torch.no_grad():
        if param.grad is not None:
            param.grad.add_(gradient)
        elif gradient.stride() == param.stride() and _is_alone(gradient):
            param.grad = gradient.new_empty(0).set_(gradient)  # type: ignore[call-overload]
        else:
            param.grad = torch.empty_like(param).copy_(gradient)


def _is_alone(x: Tensor) -> bool:
    """Return whether x fills its memory, in which no tensor lies but x and one that only x, its view, still needs."""
    storage = x.untyped_storage()
    return storage.nbytes() == x.numel() * x.element_size() and holders(x) == ALONE[x._is_view()]


def _losses(model: nn.Module, closure: Closure) -> Tensor:
    return check_loss(closure(model))
