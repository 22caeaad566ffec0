"""How a random direction is drawn. ``make_direction`` turns a word, an object or a function into a direction."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from fwdgrad.directions.base import Direction, FromCallable, SampleFunction, is_per_example
from fwdgrad.directions.coordinate import Coordinate
from fwdgrad.directions.dense import Normal, Rademacher, Sparse, Sphere
from fwdgrad.directions.guided import Guided
from fwdgrad.directions.low_rank import LowRank
from fwdgrad.directions.orthogonal import Orthogonal
from fwdgrad.directions.per_example import PerExample
from fwdgrad.directions.replay import Replay
from fwdgrad.words import check_word

DIRECTIONS: dict[str, Callable[..., Direction]] = {
    "normal": Normal,
    "rademacher": Rademacher,
    "sphere": Sphere,
    "sparse": Sparse,
    "coordinate": Coordinate,
    "orthogonal": Orthogonal,
    "low_rank": LowRank,
    "per_example": PerExample,
}


def make_direction(direction: str | Direction | SampleFunction) -> Direction:
    """Return the direction meant by a word of ``DIRECTIONS``, an object with ``sample``, or a sampling function.

    The word of a direction that takes a number may be followed by it: ``low_rank:4`` has rank 4, ``sparse:0.01`` the
    probability 0.01.

    Raises:
        ValueError: if the word is not known, or its number is missing, superfluous or out of range.
        TypeError: if it is none of the three.
    """
    if isinstance(direction, str):
        return _of_word(direction)
    sample = getattr(direction, "sample", None)
    if callable(sample):
        return direction  # type: ignore[return-value]
    if callable(direction):
        return FromCallable(direction)
    raise TypeError(
        f"direction must be one of {list(DIRECTIONS)}, an object with sample(params, generator), or such a function; "
        f"got {type(direction).__name__}"
    )


def _of_word(text: str) -> Direction:
    word, colon, number = text.partition(":")
    check_word("direction", word, DIRECTIONS)
    if not colon:
        return DIRECTIONS[word]()
    parameters = list(inspect.signature(DIRECTIONS[word]).parameters)
    if not parameters:
        raise ValueError(f"direction {word!r} takes no number, got {text!r}")
    try:
        value = int(number) if number.lstrip("+-").isdigit() else float(number)
    except ValueError:
        raise ValueError(
            f"direction {word!r} takes a number after the colon, its {parameters[0]}; got {text!r}"
        ) from None
    return DIRECTIONS[word](value)


__all__ = [
    "DIRECTIONS",
    "Coordinate",
    "Direction",
    "FromCallable",
    "Guided",
    "LowRank",
    "Normal",
    "Orthogonal",
    "PerExample",
    "Rademacher",
    "Replay",
    "Sparse",
    "Sphere",
    "is_per_example",
    "make_direction",
]
