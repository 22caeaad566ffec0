"""A direction depends on its key alone, has the shape and dtype of the parameters, and refuses what has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
import torch
from samples import PARAMS, per_example_vectors, random
from torch import Tensor

from fwdgrad import tangents
from fwdgrad.directions import DIRECTIONS, Direction, LowRank, Sparse, make_direction
from fwdgrad.randomness import KeyedGenerator


def draw(direction: Direction, params: Mapping[str, Tensor], indices: range = range(5)) -> dict[str, Tensor]:
    drawn = direction.sample(params, KeyedGenerator(1, 2, indices))
    values: Iterable[tuple[str, Tensor]] = (
        (name, per_example_vectors({name: t}, 4) if isinstance(t, tangents.PerExample) else t.materialize())
        for name, t in drawn.items()
    )
    return dict(values)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_direction_does_not_depend_on_its_chunk(name: str) -> None:
    together = draw(DIRECTIONS[name](), PARAMS)
    for chunk in (range(1), range(1, 4), range(4, 5)):
        part = draw(DIRECTIONS[name](), PARAMS, chunk)
        assert all(torch.equal(part[key], together[key][list(chunk)]) for key in PARAMS)


# The vectors of these are made over all parameters together.
JOINT = ("sphere", "coordinate", "orthogonal")


@pytest.mark.parametrize("name", [name for name in DIRECTIONS if name not in JOINT])
def test_a_direction_does_not_depend_on_the_parameters_beside_nor_on_their_order(name: str) -> None:
    together = draw(DIRECTIONS[name](), PARAMS)
    for params in (dict(reversed(PARAMS.items())), {"w": PARAMS["w"]}, {"x": random(9), "w": PARAMS["w"]}):
        assert torch.equal(draw(DIRECTIONS[name](), params)["w"], together["w"])


def test_of_the_sphere_only_the_scale_depends_on_the_parameters_beside() -> None:
    together = draw(DIRECTIONS["sphere"](), PARAMS)["w"]
    ratio = together / draw(DIRECTIONS["sphere"](), {"w": PARAMS["w"]})["w"]
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vectors_have_the_dtype_and_shape_of_the_parameters(name: str, dtype: torch.dtype) -> None:
    params = {key: param.to(dtype) for key, param in PARAMS.items()} | {"empty": torch.empty(0, 3, dtype=dtype)}
    drawn = draw(make_direction(name), params)
    for key, param in params.items():
        assert drawn[key].dtype == dtype
        assert drawn[key].shape[0] == 5
        assert drawn[key][0].numel() in (param.numel(), 4 * param.numel())


@pytest.mark.parametrize("name", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_parameters_that_are_not_real_floating_point_are_refused(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(
        TypeError, match=f"parameter 'z' must be of a real floating-point dtype .*, got {dtype}; set req"
    ):
        make_direction(name).sample({"z": torch.ones(2, 2, dtype=dtype)}, KeyedGenerator(0, 0))


@pytest.mark.parametrize("rank", [0, -1, True, 1.0, "2"])
def test_a_rank_that_is_not_a_positive_integer_is_refused(rank: object) -> None:
    with pytest.raises(ValueError, match=f"rank must be a positive integer, got {rank!r}"):
        LowRank(rank)


@pytest.mark.parametrize("probability", [0, -0.5, 1.5, True, float("nan"), "2"])
def test_a_probability_out_of_range_is_refused(probability: object) -> None:
    with pytest.raises(ValueError, match=f"probability must be a number above 0 and at most 1, got {probability!r}"):
        Sparse(probability)  # type: ignore[arg-type]


def test_a_number_may_follow_the_word() -> None:
    low_rank, sparse = make_direction("low_rank:4"), make_direction("sparse:2.5e-1")
    assert isinstance(low_rank, LowRank) and low_rank.rank == 4
    assert isinstance(sparse, Sparse) and sparse.probability == 0.25


NUMBERS = {
    "normal:3": "direction 'normal' takes no number, got 'normal:3'",
    "low_rank:": "direction 'low_rank' takes a number after the colon, its rank; got 'low_rank:'",
    "sparse:half": "direction 'sparse' takes a number after the colon, its probability; got 'sparse:half'",
    "low_rank:0": "rank must be a positive integer, got 0",
    "low_rank:1.5": "rank must be a positive integer, got 1.5",
    "sparse:2": "probability must be a number above 0 and at most 1, got 2",
    "sparce:0.1": "direction must be one of .*, got 'sparce'. Did you mean 'sparse'",
}


@pytest.mark.parametrize(("word", "text"), NUMBERS.items(), ids=NUMBERS)
def test_a_wrong_number_after_the_word_is_refused(word: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_direction(word)


def test_factors_are_kept_only_where_they_are_fewer_than_the_entries() -> None:
    drawn = LowRank(rank=2).sample({"w": random(4, 5), "dense": random(3, 4)}, KeyedGenerator(0, 0))
    assert isinstance(drawn["w"], tangents.LowRank)
    assert drawn["w"].rank == 2
    assert isinstance(drawn["dense"], tangents.Dense)
