"""What is drawn again from its key each time it is needed, instead of being stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class Recent:
    """Keeps what was made last, as long as it is no larger than the parameters of the model's largest layer.

    A layer may be called many times in one pass, as a recurrent cell is; what it needs is then made once.

    Args:
        params: the parameters by name; those of a layer share all of it but the last part.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        layers: dict[str, int] = {}
        for name, param in params.items():
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0) + param.numel()
        self.capacity = max(layers.values(), default=0)
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, name: str, size: int, make: Callable[[], Any]) -> Any:
        """Return what is kept for a name, or make it, after letting go of as much as its size demands."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name][0]
        while self._kept and size + sum(kept for _, kept in self._kept.values()) > self.capacity:
            self._kept.popitem(last=False)
        made = make()
        self._kept[name] = made, size
        return made


class Replayed:
    """K vectors of the shape of one parameter, drawn from their key each time somebody asks.

    It answers as the tangent that it draws does, and holds no numbers itself.

    Args:
        shape: shape of the parameter.
        indices: the directions, as indices among those of the step.
        draw: ``draw(indices) -> tangent`` of these directions; always the same for the same indices.
        keep: ``keep(make) -> tangent``: may return what it made before instead of making it again.
    """

    def __init__(
        self,
        shape: torch.Size,
        indices: range,
        draw: Callable[[range], Any],
        keep: Callable[[Callable[[], Any]], Any] = lambda make: make(),
    ) -> None:
        self.shape = shape
        self.indices = indices
        self._draw = draw
        self._keep = keep

    @property
    def num_directions(self) -> int:
        return len(self.indices)

    def draw(self) -> Any:
        """Return the tangent."""
        return self._keep(lambda: self._draw(self.indices))

    def select(self, k: int) -> Replayed:
        """Return the k-th vector as a tangent of one, which is never kept."""
        return Replayed(self.shape, self.indices[k : k + 1], self._draw)

    def materialize(self) -> Tensor:
        return self.draw().materialize()

    def dot(self, other: Tensor) -> Tensor:
        return self.draw().dot(other)

    def gram(self) -> Tensor:
        return self.draw().gram()

    def add_to_(self, target: Tensor, alpha: Tensor) -> None:
        self.draw().add_to_(target, alpha)
