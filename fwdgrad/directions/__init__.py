"""How a random direction is drawn. ``make_direction`` turns a word, an object or a function into a direction."""

from __future__ import annotations

from collections.abc import Callable

from fwdgrad.directions.base import Direction, FromCallable, SampleFunction, is_per_example
from fwdgrad.directions.dense import Normal, Rademacher, Sphere
from fwdgrad.directions.low_rank import LowRank
from fwdgrad.directions.per_example import PerExample
from fwdgrad.words import check_word

DIRECTIONS: dict[str, Callable[[], Direction]] = {
    "normal": Normal,
    "rademacher": Rademacher,
    "sphere": Sphere,
    "low_rank": LowRank,
    "per_example": PerExample,
}


def make_direction(direction: str | Direction | SampleFunction) -> Direction:
    """Return the direction meant by a word of ``DIRECTIONS``, an object with ``sample``, or a sampling function.

    Raises:
        ValueError: if the word is not known.
        TypeError: if it is none of the three.
    """
    if isinstance(direction, str):
        check_word("direction", direction, DIRECTIONS)
        return DIRECTIONS[direction]()
    sample = getattr(direction, "sample", None)
    if callable(sample):
        return direction  # type: ignore[return-value]
    if callable(direction):
        return FromCallable(direction)
    raise TypeError(
        f"direction must be one of {list(DIRECTIONS)}, an object with sample(params, generator), or such a function; "
        f"got {type(direction).__name__}"
    )


__all__ = [
    "DIRECTIONS",
    "Direction",
    "FromCallable",
    "LowRank",
    "Normal",
    "PerExample",
    "Rademacher",
    "Sphere",
    "is_per_example",
    "make_direction",
]
