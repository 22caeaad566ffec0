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
        params: the parameters by name.
    """

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        self.capacity = max(map(entries, layers(params).values()), default=0)
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

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()


def layers(params: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group parameters by the layer that holds them: by all of their names but the last part."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, param in params.items():
        groups.setdefault(name.rpartition(".")[0], {})[name] = param
    return groups


def entries(params: Mapping[str, Tensor]) -> int:
    """Return the number of entries of all parameters."""
    return sum(param.numel() for param in params.values())


class Replayed:
    """K vectors of the shape of one parameter, drawn from their key each time somebody asks.

    It answers as the tangent that it draws does, and holds no numbers itself.

    Args:
        shape: shape of the parameter.
        indices: the directions, as indices among those of the step.
        draw: ``draw(indices) -> tangent`` of these directions; always the same for the same indices.
        recall: ``recall() -> tangent`` of all directions; the same that ``draw`` draws, perhaps from before.
    """

    def __init__(
        self,
        shape: torch.Size,
        indices: range,
        draw: Callable[[range], Any],
        recall: Callable[[], Any] | None = None,
    ) -> None:
        self.shape = shape
        self.indices = indices
        self._draw = draw
        self._recall = recall

    @property
    def num_directions(self) -> int:
        return len(self.indices)

    def draw(self) -> Any:
        """Return the tangent."""
        return self._draw(self.indices) if self._recall is None else self._recall()

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
