"""Directions that are drawn again where they are needed, one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from fwdgrad.directions.base import Direction, Params, real_or_raise
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.replay import Recent, Replayed, entries, layers
from fwdgrad.tangents import Tangent


class Replay:
    """The vectors of another direction, none of them stored.

    The numbers are those of the direction itself. Each layer's are drawn when the evaluation reaches it and again for
    the update; of those drawn last no more are kept than the largest layer has parameters, times K.

    Args:
        direction: one that is ``separable``: it draws for each parameter on its own what it draws for all.

    Raises:
        ValueError: if the direction is not known to be separable.

    Source: Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", 2023, arXiv:2305.17333, algorithm 1,
    which replays the seed for a whole model at once.
    """

    def __init__(self, direction: Direction) -> None:
        if not getattr(direction, "separable", False):
            raise ValueError(
                f"replay draws each parameter's direction on its own, which {type(direction).__name__} does not offer; "
                "use 'normal', 'rademacher', 'sparse' or 'low_rank', set separable = True on your own direction if it "
                "depends on the key and the parameter alone, or choose replay=False"
            )
        self.direction = direction
        self._recent: Recent | None = None

    def sample(self, params: Params, generator: KeyedGenerator) -> dict[str, Replayed]:
        if self._recent is not None:  # of an estimate that may still be waiting for its update
            self._recent.clear()
        recent, replayed = Recent(params), {}
        self._recent = recent
        for layer, members in layers(params).items():

            def draw_layer(members: Params = members) -> Mapping[str, Tangent]:
                return self.direction.sample(members, generator)

            recall_layer = partial(recent.get, layer, entries(members), draw_layer)
            for name, param in members.items():
                real_or_raise(name, param)
                draw = partial(self._draw, name, param, generator)
                replayed[name] = Replayed(param.shape, generator.indices, draw, partial(_recall, recall_layer, name))
        return {name: replayed[name] for name in params}

    def _draw(self, name: str, param: Tensor, generator: KeyedGenerator, indices: range) -> Tangent:
        return self.direction.sample({name: param}, generator.at(indices))[name]


def _recall(recall_layer: Callable[[], Mapping[str, Tangent]], name: str) -> Tangent:
    return recall_layer()[name]
