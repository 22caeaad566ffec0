"""Random numbers depend on their key and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fwdgrad.randomness import KeyedGenerator, global_random_state

LIKE = torch.empty(5, 3, dtype=torch.float64)
CPU = torch.device("cpu")

DRAWS: dict[str, Callable[[KeyedGenerator, str], Tensor]] = {
    "normal": lambda generator, name: generator.normal(name, LIKE),
    "uniform": lambda generator, name: generator.uniform(name, LIKE),
    "signs": lambda generator, name: generator.signs(name, 200, torch.float64, CPU),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@every_draw
def test_the_same_key_gives_the_same_numbers(draw: Callable[[KeyedGenerator, str], Tensor]) -> None:
    first = draw(KeyedGenerator(3, 5, range(4)), "w")
    torch.rand(7)
    generator = KeyedGenerator(3, 5, range(4))
    draw(generator, "another")
    assert torch.equal(draw(generator, "w"), first)
    assert torch.equal(draw(generator, "w"), first)


@every_draw
def test_the_numbers_of_a_direction_do_not_depend_on_its_chunk(draw: Callable[[KeyedGenerator, str], Tensor]) -> None:
    together = draw(KeyedGenerator(3, 5, range(7)), "w")
    for chunk in (range(1), range(2, 5), range(6, 7)):
        assert torch.equal(draw(KeyedGenerator(3, 5, chunk), "w"), together[list(chunk)])


@every_draw
def test_each_part_of_the_key_counts(draw: Callable[[KeyedGenerator, str], Tensor]) -> None:
    drawn = [
        draw(KeyedGenerator(seed, step, range(index, index + 1)), name)
        for seed, step, index, name in [(0, 0, 0, "w"), (1, 0, 0, "w"), (0, 1, 0, "w"), (0, 0, 1, "w"), (0, 0, 0, "v")]
    ]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert not torch.equal(first, second)


def test_keys_of_neighbouring_digits_differ() -> None:
    keys = {KeyedGenerator(s, t).key(n, i) for s in (1, 11) for t in (1, 11) for i in (1, 11) for n in ("1", "1/1")}
    assert len(keys) == 16
    assert all(0 <= key < 2**63 for key in keys)


@every_draw
def test_the_global_generator_is_neither_read_nor_advanced(draw: Callable[[KeyedGenerator, str], Tensor]) -> None:
    torch.manual_seed(0)
    before, first = torch.get_rng_state(), draw(KeyedGenerator(0, 0), "w")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(draw(KeyedGenerator(0, 0), "w"), first)


@pytest.mark.parametrize("count", [0, 1, 7, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_signs_are_signs_of_the_asked_shape_and_dtype(count: int, dtype: torch.dtype) -> None:
    signs = KeyedGenerator(0, 0, range(3)).signs("w", count, dtype, CPU)
    assert signs.shape == (3, count)
    assert signs.dtype == dtype
    assert torch.equal(signs.abs(), torch.ones_like(signs))


def test_signs_do_not_depend_on_how_many_are_drawn_nor_on_the_names_beside() -> None:
    generator = KeyedGenerator(0, 0, range(3))
    many = generator.signs("w", 200, torch.float64, CPU)
    assert torch.equal(generator.signs("w", 70, torch.float64, CPU), many[:, :70])
    for names in ({"w": 200}, {"a": 3, "w": 200, "b": 65}, {"w": 200, "empty": 0, "a": 64}):
        assert torch.equal(generator.all_signs(names, torch.float64, CPU)["w"], many)
    beside = generator.all_signs({"a": 64, "w": 200}, torch.float64, CPU)
    assert not torch.equal(beside["a"], many[:, :64])


def assert_uncorrelated(columns: Tensor, variance: float = 1.0) -> None:
    """Assert that columns of N independent numbers have mean 0 and covariance ``variance * I``, within 6 sigma."""
    count = len(columns)
    kurtosis = (columns**4).mean().item() / variance**2
    assert (columns.mean(0).abs() <= 6 * math.sqrt(variance / count)).all()
    deviation = (columns.T @ columns / count - variance * torch.eye(columns.shape[1])).abs()
    assert (deviation <= 6 * variance * math.sqrt(max(kurtosis, 1.0) / count)).all()


@every_draw
def test_entries_directions_steps_seeds_and_names_are_uncorrelated(
    draw: Callable[[KeyedGenerator, str], Tensor],
) -> None:
    mean, variance = (0.5, 1 / 12) if draw is DRAWS["uniform"] else (0.0, 1.0)
    rows = [
        torch.cat([draw(KeyedGenerator(*key), name).flatten()[:15] for key in ((s, s), (s, s + 1), (s + 1, s))])
        for s in range(0, 4000, 2)
        for name in ("w", "v")
    ]
    assert_uncorrelated(torch.stack(rows).float() - mean, variance)
    directions = draw(KeyedGenerator(0, 0, range(4000)), "w").flatten(1)[:, :15].float()
    assert_uncorrelated(directions - mean, variance)
    assert_uncorrelated((directions[:-1] - mean) * (directions[1:] - mean), variance**2)


def test_correlated_numbers_fail_the_test_of_correlation() -> None:
    columns = KeyedGenerator(0, 0, range(4000)).normal("w", torch.empty(15))
    columns[:, 3] += 0.2 * columns[:, 4]
    with pytest.raises(AssertionError):
        assert_uncorrelated(columns)


def test_global_random_state_can_be_set_back_more_than_once() -> None:
    replay = global_random_state([LIKE])
    first = torch.rand(3)
    for _ in range(2):
        replay()
        assert torch.equal(torch.rand(3), first)
