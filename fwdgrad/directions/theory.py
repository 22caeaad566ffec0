"""The variance that an estimate has by what its direction states, part by part of the parameters."""

from __future__ import annotations

from fwdgrad.directions.base import Direction
from fwdgrad.directions.coordinate import Coordinate
from fwdgrad.directions.dense import Normal, Rademacher, Sparse, Sphere
from fwdgrad.directions.low_rank import LowRank
from fwdgrad.directions.orthogonal import Orthogonal
from fwdgrad.directions.replay import Replay


def expected_variance(
    direction: Direction, num_directions: int, count: int, square: float, total: int, total_square: float
) -> float | None:
    """Return ``E|e_l - g_l|^2`` of the estimate ``e = 1/K sum_k (g.v_k) v_k`` in a part l of the parameters.

    ``E|(g.v) v_l|^2`` is ``P_l |g|^2 + (kurtosis - 1) |g_l|^2`` for independent entries of the kurtosis ``E v_i^4``.

    Args:
        direction: the distribution of v.
        num_directions: K.
        count: P_l, the entries of the part.
        square: ``|g_l|^2``.
        total: P, all entries.
        total_square: ``|g|^2``.

    Returns:
        The variance, or None where no formula is known for the direction or the part.
    """
    if isinstance(direction, Replay):
        direction = direction.direction
    independent = count * total_square
    if isinstance(direction, Normal):
        moment = independent + 2 * square
    elif isinstance(direction, Rademacher) or (isinstance(direction, LowRank) and direction.rank == 1):
        moment = independent
    elif isinstance(direction, Sparse):
        moment = independent + (1 / direction.probability - 1) * square
    elif isinstance(direction, Sphere):
        moment = (independent + 2 * square) * total / (total + 2)
    elif isinstance(direction, Coordinate | Orthogonal) and count == total and num_directions <= total:
        return total_square * (total / num_directions - 1)  # the directions of a step are orthogonal
    else:
        return None
    return (moment - square) / num_directions
