"""Diagnostics measure what they say, against known cases, and change nothing."""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import samples
import torch
from command import Train, close_logs, read_table, train  # noqa: F401
from methods import METHODS, Method, every_method, every_shared_method
from samples import PARAMS, assert_same, exact_gradient, flatten, gradients, random, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from fwdgrad import Backprop, ForwardGradient
from fwdgrad.diagnostics import NoGradientError, diagnose, draw
from fwdgrad.directions import DIRECTIONS, Normal, Replay
from fwdgrad.directions.theory import expected_variance
from fwdgrad.estimators import StepRecord
from fwdgrad.optim import FactoredSGD
from fwdgrad.randomness import KeyedGenerator
from fwdgrad.training import load_checkpoint

SCRIPT = Path(__file__).parent.parent / "scripts" / "diagnose.py"


class Given:
    """An estimator that gives known estimates of the gradient of ``samples.mlp``, one after the other."""

    def __init__(self, factors: list[float], noise: float = 0.0) -> None:
        self.factors, self.noise, self.step = factors, noise, 0
        self.last: StepRecord | None = None

    def __call__(self, model: nn.Module, closure: samples.Closure) -> Tensor:
        factor = self.factors[self.step % len(self.factors)]
        self.step += 1
        for name, value in exact_gradient(model, closure).items():
            across = random(*value.shape, seed=9)
            across -= (across * value).sum() / value.square().sum() * value  # at right angles, layer by layer
            across *= value.norm() / across.norm()
            dict(model.named_parameters())[name].grad = factor * value + self.noise * across
        return closure(model).mean().detach()


def test_known_estimates_have_known_figures() -> None:
    model, closure = samples.mlp()
    diagnosis = diagnose(model, closure, Given([1.0, 2.0], noise=3.0), samples=4)
    assert [part.name for part in diagnosis.parts] == ["0", "2"]
    for part in (diagnosis.total, *diagnosis.parts):
        assert part.projection == pytest.approx(1.5)
        assert part.cosine == pytest.approx((1 / math.sqrt(10) + 2 / math.sqrt(13)) / 2)
        assert part.variance == pytest.approx(9.5)  # 0 and 1 along the gradient, 9 across
        assert part.signal_to_noise == pytest.approx(1 / 9.5)
        assert part.bias_z == pytest.approx(0.5 / math.sqrt(1 / 3 / 4))
        assert part.expected_variance is None
    exact = exact_gradient(model, closure)
    assert diagnosis.total.square == pytest.approx(flatten(exact).square().sum().item())
    assert diagnosis.parts[1].square == pytest.approx(
        sum(exact[f"2.{n}"].square().sum().item() for n in ("weight", "bias"))
    )
    assert (diagnosis.total.count, diagnosis.parts[0].count) == (26, 16)


def test_backpropagation_is_exact() -> None:
    total = diagnose(*samples.mlp(), Backprop(), samples=2).total
    assert (total.projection, total.bias_z, total.variance) == (1.0, 0.0, 0.0)
    assert total.cosine == pytest.approx(1.0)
    assert total.signal_to_noise == math.inf


class Scaled(Normal):
    """Normal directions half as long again."""

    def sample(self, params: Mapping[str, Tensor], generator: KeyedGenerator) -> dict[str, Any]:
        return {name: 1.5 * tangent.values for name, tangent in super().sample(params, generator).items()}


def test_a_bias_shows_and_its_absence_does_too() -> None:
    honest = diagnose(*samples.mlp(), ForwardGradient(engine="dual"), samples=256)
    biased = diagnose(*samples.mlp(), ForwardGradient(Scaled().sample, engine="dual"), samples=256)
    assert all(abs(part.bias_z) < 4 for part in (honest.total, *honest.parts))
    assert biased.total.bias_z > 4


@pytest.mark.parametrize(
    "name", ["backprop", "forward_gradient-normal-dual", "replay-low_rank-dual", "forward_gradient-per_example-dual"]
)
@pytest.mark.parametrize("num_directions", [1, 4])
def test_the_measured_variance_is_the_stated_one(name: str, num_directions: int) -> None:
    total = diagnose(*samples.mlp(), METHODS[name].make(num_directions=num_directions), samples=128).total
    assert total.expected_variance is not None
    squares = [error**2 for error in total.errors]
    deviation = math.sqrt(sum(squares) / len(squares)) / math.sqrt(len(squares))
    assert abs(total.variance - total.expected_variance) <= 4 * deviation
    assert abs(total.variance - 2 * total.expected_variance) > 4 * deviation or name == "backprop"


@pytest.mark.parametrize("name", [name for name in DIRECTIONS if name != "per_example"])
def test_the_stated_variance_of_every_direction_part_by_part(name: str) -> None:
    direction, orthogonal = DIRECTIONS[name](), name in ("coordinate", "orthogonal")
    gradient = {key: random(*value.shape, seed=7) for key, value in PARAMS.items()}
    total = sum(value.numel() for value in gradient.values())
    square = sum(value.square().sum().item() for value in gradient.values())
    generator = KeyedGenerator(0, 0, range(total if orthogonal else 20_000))
    drawn = {key: tangent.materialize() for key, tangent in direction.sample(PARAMS, generator).items()}
    slope = flatten(drawn, lead=1) @ flatten(gradient)
    parts = {"all": list(PARAMS), **{key: [key] for key in PARAMS}}
    known = 0
    for keys in parts.values():
        part_gradient = flatten({key: gradient[key] for key in keys})
        estimates = slope.unsqueeze(1) * flatten({key: drawn[key] for key in keys}, lead=1)
        errors = (estimates - part_gradient).square().sum(1)
        own = part_gradient.square().sum().item()
        expected = expected_variance(direction, 1, part_gradient.numel(), own, total, square)
        if expected is not None:
            known += 1
            # Over a whole set of orthogonal directions the mean is exact.
            deviation = 1e-10 * expected if orthogonal else errors.std().item() / math.sqrt(len(errors))
            assert abs(errors.mean().item() - expected) <= 5 * deviation
            assert abs(errors.mean().item() - 1.2 * expected) > 5 * deviation
    assert known == (1 if orthogonal else len(parts))


def test_the_stated_variance_of_several_directions() -> None:
    assert expected_variance(Replay(Normal()), 4, 3, 1.0, 7, 2.0) == (3 * 2.0 + 2 * 1.0 - 1.0) / 4
    assert expected_variance(DIRECTIONS["orthogonal"](), 7, 7, 2.0, 7, 2.0) == 0
    assert expected_variance(DIRECTIONS["low_rank"](rank=2), 1, 3, 1.0, 7, 2.0) is None


@every_method
def test_a_diagnosis_leaves_everything_as_it_is(method: Method) -> None:
    results = []
    for diagnosed in (True, False):
        model, closure = samples.dropout()
        torch.manual_seed(3)
        estimator = method.make(num_directions=2)
        estimator(model, closure)
        before = (weights(model), gradients(model), torch.get_rng_state(), estimator.last)
        if diagnosed:
            diagnose(model, closure, estimator, samples=3)
        assert_same(weights(model), before[0], tolerance=0.0)
        assert_same(gradients(model), before[1], tolerance=0.0)
        assert torch.equal(torch.get_rng_state(), before[2])
        assert estimator.last is before[3]
        estimator(model, closure)
        results.append((gradients(model), torch.get_rng_state()))
    assert_same(results[0][0], results[1][0], tolerance=0.0)
    assert torch.equal(results[0][1], results[1][1])


@every_shared_method
def test_buffers_stay_as_they_are(method: Method) -> None:
    model, closure = samples.batch_norm()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    diagnose(model, closure, method.make(), samples=2)
    assert_same(dict(model.named_buffers()), before, tolerance=0.0)


def test_an_optimizer_that_takes_factors_gets_nothing_from_a_diagnosis() -> None:
    model, closure = samples.mlp()
    optimizer = FactoredSGD(model.parameters(), lr=1.0)
    estimator = ForwardGradient("low_rank", engine="dual", optimizer=optimizer)
    before = weights(model)
    assert diagnose(model, closure, estimator, samples=2).total.variance > 0
    optimizer.step()
    assert_same(weights(model), before, tolerance=0.0)
    assert estimator.optimizer is optimizer


def test_frozen_layers_are_left_out_and_refusals_say_why() -> None:
    model, closure = samples.mlp()
    model[0].requires_grad_(False)
    assert [part.name for part in diagnose(model, closure, ForwardGradient(), samples=2).parts] == ["2"]
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        diagnose(model, closure, ForwardGradient(), samples=1)
    with pytest.raises(NoGradientError, match=r"\|g\|\^2 of the exact gradient g is 0.0: there is nothing to compare"):
        diagnose(model, lambda m: closure(m) * 0, ForwardGradient(), samples=2)


RUNS = [
    ("optimization=fwdgrad_fast", "model._target_=own_models.batch_norm_net"),
    ("optimization=mezo", "model._target_=own_models.dropout_net"),
    ("optimization=activity", "model=mlp_small"),
]


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: overrides[0])
def test_training_is_the_same_with_and_without(
    train: Train,  # noqa: F811
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    states, rows = [], []
    for i, extra in enumerate(((), ("diagnose_every=4", "diagnose_samples=3"))):
        outcome = train(*overrides, *extra, "epochs=null", "max_steps=10", f"hydra.run.dir={i}", "optimizer=sgd")
        assert outcome.code == 0, outcome.err
        states.append(load_checkpoint(tmp_path / str(i), torch.device("cpu")))
        rows.append(
            [
                {key: v for key, v in row.items() if key != "seconds"}
                for row in read_table(tmp_path / str(i) / "metrics.csv")
            ]
        )
    assert_same(states[0]["model"], states[1]["model"], tolerance=0.0)
    assert torch.equal(states[0]["random"], states[1]["random"])
    assert states[0]["estimator"] == states[1]["estimator"]
    assert rows[0] == rows[1]
    events = EventAccumulator(str(tmp_path / "1")).Reload()
    assert [event.step for event in events.Scalars("diagnostics/cosine")] == [4, 8]
    assert {"diagnostics/bias_z", "diagnostics/variance", "diagnostics/signal_to_noise"} <= set(
        events.Tags()["scalars"]
    )
    assert not any("diagnostics" in tag for tag in EventAccumulator(str(tmp_path / "0")).Reload().Tags()["scalars"])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            close_logs()
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("optimization", ["activity", "fwdgrad", "backprop"])
def test_the_script_prints_a_table_and_leaves_a_picture(
    script: Callable[..., Any], tmp_path: Path, optimization: str
) -> None:
    code, out, err = script(
        "model=mlp_small", f"optimization={optimization}", "diagnose_samples=4", "hydra.run.dir=run"
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"digits-mlp_small-{optimization}: 4 estimates of one batch's gradient"
    assert lines[2].split() == [
        "layer",
        "entries",
        "|g|",
        "cosine",
        *("along", "g", "bias", "z"),
        "variance",
        "theory",
        "signal/noise",
    ]
    assert [line.split()[:2] for line in lines[4:6]] == [["1", "4160"], ["3", "650"]]
    assert lines[7].split()[:2] == ["all", "4810"]
    assert len({len(line) for line in lines[2:8]}) == 1
    assert (tmp_path / "run" / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.0])
def test_the_picture_shows_any_figures(tmp_path: Path, factor: float) -> None:
    diagnosis = diagnose(*samples.mlp(), Given([factor]), samples=2)
    assert diagnosis.total.cosine == pytest.approx(factor)
    draw(diagnosis, "given", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_script_cannot_go_on_with_a_run(script: Callable[..., Any]) -> None:
    code, _, err = script("resume=outputs/nothing")
    assert code == 2
    assert "error:" in err


def test_what_cannot_be_diagnosed_in_training_is_refused(train: Train) -> None:  # noqa: F811
    outcome = train("diagnose_every=2", "compile=true")
    assert "diagnose_every works on copies of the model, which compile=true does not serve" in outcome.error_line()
    assert "diagnose_samples must be at least 2, got 1" in train("diagnose_samples=1").error_line()
