"""The moving average of the weights, and that it is what a run evaluates."""

import copy
from pathlib import Path

import pytest
import torch
from command import Train, read_json, train
from torch import nn

from fwdgrad.training import load_checkpoint
from fwdgrad.training.averaging import make_average

__all__ = ["train"]  # a fixture


def random_walk(model: nn.Module, steps: int) -> list[dict[str, torch.Tensor]]:
    """Move all floating-point values at random, count the counters up; return the states on the way."""
    states = []
    for _ in range(steps):
        for value in model.state_dict().values():
            value.add_(torch.randn_like(value) if value.is_floating_point() else 1)
        states.append(copy.deepcopy(model.state_dict()))
    return states


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_follows_its_formula(decay: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    states = random_walk(copy.deepcopy(model), 30)
    average = make_average(model, decay)
    expected: dict[str, torch.Tensor] = {}
    slower: dict[str, torch.Tensor] = {}
    for n, state in enumerate(states):
        model.load_state_dict(state)
        average.update_parameters(model)
        d = min(decay, (1 + n) / (10 + n)) if n else 0.0
        for name, value in state.items():
            expected[name] = d * expected.get(name, 0.0) + (1 - d) * value
            slower[name] = decay * slower.get(name, value) + (1 - decay) * value
    actual = average.module.state_dict()
    for name, value in states[-1].items():
        if value.is_floating_point():
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=1e-12)
            assert decay < 0.5 or not torch.allclose(actual[name], slower[name])  # what it would be without a warm-up
        else:
            assert torch.equal(actual[name], value)


def test_a_run_evaluates_the_average(train: Train) -> None:
    common = ("epochs=2", "optimizer=adam", "optimization.learning_rate=0.03")
    assert train(*common, "hydra.run.dir=plain").code == 0
    assert train(*common, "ema_decay=0.9", "hydra.run.dir=averaged").code == 0
    plain, averaged = (load_checkpoint(Path(folder)) for folder in ("plain", "averaged"))
    for name, value in plain["model"].items():
        assert torch.equal(value, averaged["model"][name])  # averaging leaves the training as it was
        assert not torch.equal(value, averaged["average"][f"module.{name}"])
    without, metrics = (read_json(Path(folder, "metrics.json")) for folder in ("plain", "averaged"))
    assert metrics["test_accuracy_without_average"] == without["test_accuracy"]
    assert metrics["test_loss"] != without["test_loss"]


def test_an_average_may_begin_in_a_resumed_run(train: Train) -> None:
    assert train("max_steps=10", "hydra.run.dir=run").code == 0
    assert train("resume=run", "max_steps=11", "ema_decay=0.5").code == 0
    assert load_checkpoint(Path("run"))["average"]["n_averaged"] == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_a_decay_out_of_range_is_refused(train: Train, value: float) -> None:
    outcome = train(f"ema_decay={value}")
    assert outcome.code == 2
    assert outcome.error_line() == f"ema_decay must be between 0 and 1, got {value}"
