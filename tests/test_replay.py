"""Replayed directions: the numbers of stored ones, in the memory of one layer, for every kind of layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import samples
import torch
import torch.nn.functional as F
from samples import PARAMS, assert_same, gradients, random, seeded, weights
from torch import Tensor, nn

from fwdgrad import ForwardGradient, ZerothOrder
from fwdgrad.directions import DIRECTIONS, Normal, Replay
from fwdgrad.engines import ENGINES
from fwdgrad.memory import peak_bytes
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.replay import Recent
from fwdgrad.tangents import Tangent

SEPARABLE = [name for name, make in DIRECTIONS.items() if getattr(make, "separable", False)]
# A difference of two losses loses digits; both sides lose nearly the same.
TOLERANCE = {"func": 0.0, "dual": 1e-12, "finite_difference": 1e-8}


def test_the_directions_that_can_be_replayed() -> None:
    assert {"normal", "rademacher", "sparse", "low_rank"} <= set(SEPARABLE)


@pytest.mark.parametrize("name", SEPARABLE)
def test_replayed_vectors_are_the_stored_ones_bit_by_bit(name: str) -> None:
    direction, generator = DIRECTIONS[name](), KeyedGenerator(3, 5, range(2, 6))
    stored, replayed = direction.sample(PARAMS, generator), Replay(direction).sample(PARAMS, generator)
    for key, tangent in stored.items():
        vectors = tangent.materialize()
        for _ in range(2):
            assert torch.equal(replayed[key].materialize(), vectors)
        for k in range(4):
            assert torch.equal(replayed[key].select(k).materialize(), vectors[k : k + 1])


def lstm() -> tuple[nn.Module, samples.Closure]:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x)[0][:, -1])

    x, y = random(5, 6, 3), torch.tensor([0, 1, 0, 1, 1])
    return seeded(Last), lambda m: F.cross_entropy(m(x), y, reduction="none")


def transformer() -> tuple[nn.Module, samples.Closure]:
    x = random(2, 3, 4)
    make = lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)  # noqa: E731
    return seeded(make), lambda m: m(x).square().mean((1, 2))


def channels_last() -> tuple[nn.Module, samples.Closure]:
    model, closure = samples.conv()
    return model.to(memory_format=torch.channels_last), closure


def odd_uses() -> tuple[nn.Module, samples.Closure]:
    """Return a model that views, slices, indexes and compares its weights."""
    model, _ = samples.mlp()
    x = random(5, 3)

    def closure(m: Any) -> Tensor:
        w, b = m[0].weight, m[2].bias
        hidden = x @ w.t()[:, :2] + w[2:, 0] * (w[:2, 1] > 0) + w.reshape(-1)[:2]
        return (hidden @ m[2].weight[:, :2].T + b.expand(5, 2)).exp().sum(1) + m[0].bias.norm() + len(b)

    return model, closure


MODELS = [
    *(samples.mlp, samples.dropout, samples.tied, samples.tied_embedding, samples.conv, samples.batch_norm),
    *(lstm, transformer, channels_last, odd_uses),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("direction", SEPARABLE)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_the_estimate_is_that_of_stored_directions(make: Callable[..., Any], direction: str, engine: str) -> None:
    results = []
    for replay in (True, False):
        model, closure = make()
        torch.manual_seed(0)
        ForwardGradient(direction, 2, engine, replay=replay, seed=1)(model, closure)
        results.append(gradients(model))
    # The step of differences follows the length of a stored direction, and one for random entries of a replayed one.
    assert_same(results[0], results[1], TOLERANCE[engine])


@pytest.mark.parametrize("options", [{"aggregation": "projection"}, {"control_variate": "momentum"}], ids=str)
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_replay_goes_with_every_way_to_combine_directions(options: dict[str, Any], chunk_size: int | None) -> None:
    results = []
    for replay in (True, False):
        model, closure = samples.mlp()
        estimator = ForwardGradient("normal", 3, "dual", chunk_size, replay=replay, **options)
        for _ in range(2):
            estimator(model, closure)
        results.append(gradients(model))
    assert_same(results[0], results[1])


def test_another_direction_gives_another_estimate() -> None:
    model, closure = samples.mlp()
    ForwardGradient("normal", 2, "finite_difference", replay=True, seed=1)(model, closure)
    first = gradients(model)
    model.zero_grad()
    ForwardGradient("normal", 2, "finite_difference", seed=2)(model, closure)
    with pytest.raises(AssertionError):
        assert_same(first, gradients(model), TOLERANCE["finite_difference"])


class Counting(Normal):
    """Normal directions that count how often each parameter's are drawn."""

    def __init__(self) -> None:
        self.draws: Counter[str] = Counter()

    def sample(self, params: Mapping[str, Tensor], generator: KeyedGenerator) -> dict[str, Any]:
        self.draws.update(list(params))
        return super().sample(params, generator)


@pytest.mark.parametrize("make", [samples.mlp, lstm], ids=["mlp", "lstm"])
def test_a_layer_called_again_and_again_draws_once_a_pass(make: Callable[..., Any]) -> None:
    for estimator, passes in ((lambda d: ZerothOrder(d), 2), (lambda d: ForwardGradient(d, 1, "dual", replay=True), 1)):
        direction = Counting()
        model, closure = make()
        estimator(direction)(model, closure)
        # Once more for the update, unless it is still there from the evaluation.
        assert set(direction.draws) == set(dict(model.named_parameters()))
        assert set(direction.draws.values()) <= {passes, passes + 1}


def test_recent_keeps_no_more_than_the_largest_layer() -> None:
    params = {"a.w": torch.empty(6), "a.b": torch.empty(2), "c.w": torch.empty(7)}
    recent, made = Recent(params), []

    def get(name: str, size: int) -> None:
        recent.get(name, size, lambda: made.append(name))

    assert recent.capacity == 8
    for name in ("a.w", "a.b", "a.w", "a.b"):
        get(name, params[name].numel())
    assert made == ["a.w", "a.b"]
    get("c.w", 7)  # both have to go
    get("a.b", 2)
    get("c.w", 7)
    assert made == ["a.w", "a.b", "c.w", "a.b", "c.w"]


def wide_and_deep(depth: int, width: int, batch: int) -> tuple[nn.Module, samples.Closure]:
    layers = [module for _ in range(depth) for module in (nn.Linear(width, width), nn.ReLU())]
    x, y = random(batch, width).float(), torch.zeros(batch, dtype=torch.long)
    return seeded(lambda: nn.Sequential(*layers)).float(), lambda m: F.cross_entropy(m(x), y, reduction="none")


# Above the memory of inference: how many times it, and how many directions of a layer.
METHODS: dict[str, tuple[Callable[[torch.optim.Optimizer], Any], float, float]] = {
    "zeroth order": (lambda optimizer: ZerothOrder("normal", optimizer=optimizer), 1.25, 1),
    # Each activation carries its tangent: twice the memory of inference is what forward mode takes.
    "dual": (lambda optimizer: ForwardGradient("normal", 1, "dual", replay=True, optimizer=optimizer), 2.05, 1),
    "low rank": (
        lambda optimizer: ForwardGradient("low_rank", 1, "dual", replay=True, optimizer=optimizer),
        2.05,
        0.05,
    ),
    "stored": (lambda optimizer: ForwardGradient("normal", 1, "dual", optimizer=optimizer), 2.05, 1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("depth", "width", "batch"), [(20, 128, 128), (6, 512, 16)])
def test_a_step_takes_the_memory_of_inference_and_one_layers_direction(
    method: str, depth: int, width: int, batch: int
) -> None:
    model, closure = wide_and_deep(depth, width, batch)
    optimizer = FactoredSGD(model.parameters(), lr=1e-3)
    make, factor, directions = METHODS[method]
    estimator = make(optimizer)

    def inference() -> None:
        with torch.no_grad():
            closure(model)

    def step() -> None:
        optimizer.zero_grad()
        estimator(model, closure)
        optimizer.step()

    inference()
    step()
    before = weights(model)
    limit = factor * peak_bytes(inference) + directions * 4 * width * (width + 1)
    assert (peak_bytes(step) <= limit) == (method != "stored")
    assert not gradients(model)
    assert any(not torch.equal(before[name], value) for name, value in weights(model).items())


def test_a_replayed_tangent_answers_as_the_one_it_draws() -> None:
    generator = KeyedGenerator(0, 0, range(3))
    stored: Mapping[str, Tangent] = Normal().sample(PARAMS, generator)
    other, alpha = random(3, 4, seed=9), random(3, seed=8)
    replayed = Replay(Normal()).sample(PARAMS, generator)["w"]
    assert (replayed.shape, replayed.num_directions) == (torch.Size((3, 4)), 3)
    assert torch.equal(replayed.dot(other), stored["w"].dot(other))
    assert torch.equal(replayed.gram(), stored["w"].gram())
    targets = [torch.zeros(3, 4).double() for _ in range(2)]
    replayed.add_to_(targets[0], alpha)
    stored["w"].add_to_(targets[1], alpha)
    assert torch.equal(*targets)


def test_steps_in_place_by_replay_are_those_of_the_paper() -> None:
    results = []
    for kind, options in (
        (FactoredSGD, {"engine": "dual", "replay": True}),
        (torch.optim.SGD, {"engine": "func"}),
    ):
        model, closure = samples.mlp()
        optimizer = kind(model.parameters(), lr=0.1)
        estimator = ForwardGradient("normal", 2, optimizer=optimizer, **options)
        for _ in range(5):
            optimizer.zero_grad()
            estimator(model, closure)
            optimizer.step()
        results.append(weights(model))
    assert_same(results[0], results[1])
    with pytest.raises(AssertionError):
        assert_same(results[0], weights(samples.mlp()[0]), tolerance=1e-3)
