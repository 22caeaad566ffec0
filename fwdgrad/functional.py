"""A module and a closure read as one pure function of the trainable parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Closure = Callable[[Any], Tensor]


class BoundModel(nn.Module):
    """Holds a model as a submodule, so that ``functional_call`` reaches it however the closure calls it.

    Can be kept from step to step. ``ties`` has, for each place in the model whose tensor goes by an earlier name too,
    that name. A module that is registered twice holds its tensors in one place: replacing them there twice, as
    ``functional_call`` does with ties of its own, would keep it from putting the parameters back.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        names: dict[int, str] = {}
        self.ties: dict[str, str] = {}
        for prefix, module in self.named_modules():
            for key, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    name = f"{prefix}.{key}"
                    if names.setdefault(id(tensor), name) != name:
                        self.ties[name] = names[id(tensor)]
        self.tensors = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]

    def forward(self, closure: Closure) -> Tensor:
        return closure(self.model)


class FunctionalModel:
    """The pure function ``params -> (losses, buffers)`` behind ``closure(model)``.

    Calling it leaves the model as it is: parameters come from the argument, and buffers are cloned before the forward
    pass and returned as they are after it. ``params`` holds the trainable parameters by name, detached; frozen ones
    (``requires_grad=False``) stay in the model and get no direction.

    Args:
        model: any module.
        closure: called with the model, returns a scalar loss or a vector of per-example losses.
        bound: the ``bound`` of an earlier function of the model, which saves preparing it anew.
        parts: the losses may have further dimensions, (B, ...): those of the parts of each example.

    Raises:
        ValueError: if no parameter is trainable.
    """

    def __init__(
        self, model: nn.Module, closure: Closure, bound: BoundModel | None = None, parts: bool = False
    ) -> None:
        check_trainable(model)
        parameters = dict(model.named_parameters())
        self.parameters = {name: param for name, param in parameters.items() if param.requires_grad}
        self.params: dict[str, Tensor] = {name: param.detach() for name, param in self.parameters.items()}
        self._buffers = dict(model.named_buffers())
        if (
            bound is None
            or bound.model is not model
            or bound.tensors != list(map(id, (*parameters.values(), *self._buffers.values())))
        ):
            bound = BoundModel(model)
        self.bound = bound
        self._closure = closure
        self._parts = parts

    def __call__(self, params: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        state = {f"model.{name}": value for name, value in params.items()}
        state |= {f"model.{name}": buffer.clone() for name, buffer in self._buffers.items()}
        state |= {tie: state[name] for tie, name in self.bound.ties.items() if name in state}
        loss = torch.func.functional_call(self.bound, state, (self._closure,), tie_weights=False)
        return check_loss(loss, self._parts), {name: state[f"model.{name}"] for name in self._buffers}

    def write_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Leave the model's buffers as an ordinary forward pass would have."""
        with torch.no_grad():
            for name, value in buffers.items():
                self._buffers[name].copy_(value)


def check_trainable(model: object) -> None:
    """Raise unless the model is a module with a trainable parameter."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not any(param.requires_grad for param in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} has no parameter with requires_grad=True, so there is nothing to train"
        )


def check_independent_examples(model: nn.Module, method: str) -> None:
    """Raise ValueError if a layer makes the loss of one example depend on the others, which ``method`` cannot bear."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise ValueError(
                f"{name}: BatchNorm in training mode makes each example's loss depend on the others, and {method} "
                "needs them independent; use GroupNorm or LayerNorm, or put the layer in eval mode"
            )


def check_loss(loss: object, parts: bool = False) -> Tensor:
    """Return what the closure returned, or raise if it is neither a loss nor per-example losses (nor their parts)."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"the closure must return a loss tensor, got {type(loss).__name__}")
    if loss.dim() > 1 and not parts:
        raise ValueError(
            "the closure must return a scalar loss or a vector of per-example losses, "
            f"got a tensor of shape {tuple(loss.shape)}"
        )
    if not loss.is_floating_point():
        raise TypeError(f"the closure must return a floating-point loss, got {loss.dtype}")
    return loss
