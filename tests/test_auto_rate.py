"""``learning_rate=auto``: what is measured on functions whose best step is known, and how a run uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import samples
import torch
from command import Train, read_table, train
from samples import random, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from fwdgrad import Backprop, Estimator, ForwardGradient
from fwdgrad.optim import FactoredSGD
from fwdgrad.training.auto_rate import FRACTION, measure_learning_rate

__all__ = ["train"]  # a fixture

CURVATURES = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 0.1], dtype=torch.float64)
BATCHES = [(torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2))] * 3


def model() -> nn.Module:
    return samples.seeded(lambda: nn.Linear(6, 1, bias=False))


def quadratic(scale: float = 1.0) -> Callable[[Tensor, Tensor], Callable[[nn.Module], Tensor]]:
    """Return losses whose Hessian is diagonal, with ``scale * CURVATURES`` on it."""
    return lambda x, y: lambda m: scale * 0.5 * (CURVATURES * m.weight.square()).sum(1).expand(len(x))


def measured(
    estimator: Estimator,
    scale: float = 1.0,
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    **settings: float,
) -> float:
    layer = model()
    return measure_learning_rate(
        layer, estimator, kind(layer.parameters(), lr=1.0, **settings), BATCHES, quadratic(scale)
    )


def test_for_one_direction_it_is_the_inverse_trace_of_the_hessian() -> None:
    # v^T H v is the trace for every vector of signs.
    expected = FRACTION / float(CURVATURES.sum())
    assert measured(ForwardGradient("rademacher")) == pytest.approx(expected, rel=1e-6)
    assert measured(ForwardGradient("rademacher")) != pytest.approx(1.01 * expected, rel=1e-3)
    assert measured(ForwardGradient("rademacher"), kind=FactoredSGD) == pytest.approx(expected, rel=1e-6)


def test_for_backpropagation_it_is_the_inverse_curvature_along_the_gradient() -> None:
    gradient = CURVATURES * model().weight.detach()[0]
    curvature = (CURVATURES * gradient.square()).sum() / gradient.square().sum()
    assert measured(Backprop()) == pytest.approx(FRACTION / float(curvature), rel=1e-6)


def test_directions_add_up() -> None:
    one, many = measured(ForwardGradient("rademacher")), measured(ForwardGradient("rademacher", 6))
    exact = measured(ForwardGradient("orthogonal", 6))
    assert one < many < exact
    assert exact == pytest.approx(measured(Backprop()), rel=1e-6)


def test_a_loss_twice_as_steep_halves_the_rate_of_sgd_and_leaves_that_of_adam() -> None:
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        ratio = measured(ForwardGradient(), 2.0, kind) / measured(ForwardGradient(), 1.0, kind)
        assert ratio == pytest.approx(0.5 if kind is torch.optim.SGD else 1.0, rel=1e-5)


def test_momentum_takes_its_share() -> None:
    ratio = measured(ForwardGradient(), momentum=0.9) / measured(ForwardGradient())
    assert ratio == pytest.approx(0.1)


@pytest.mark.parametrize("make", [samples.dropout, samples.batch_norm])
def test_the_model_and_the_random_state_are_left_alone(make: Callable[[], tuple[nn.Module, samples.Closure]]) -> None:
    net, closure = make()
    before, buffers = weights(net), {name: buffer.clone() for name, buffer in net.named_buffers()}
    state = torch.get_rng_state()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rate = measure_learning_rate(net, ForwardGradient(), optimizer, [(random(2), random(2))], lambda x, y: closure)
    assert rate > 0
    samples.assert_same(weights(net), before, tolerance=0.0)
    samples.assert_same(dict(net.named_buffers()), buffers, tolerance=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(param.grad is None for param in net.parameters())


def test_what_it_cannot_know_is_refused() -> None:
    with pytest.raises(ValueError, match="knows SGD, FactoredSGD, Adam and AdamW, not Adagrad; give a number"):
        measured(ForwardGradient(), kind=torch.optim.Adagrad)
    with pytest.raises(ValueError, match="found no step along the estimates that lowers the loss; give a number"):
        measured(ForwardGradient(), scale=0.0)


def test_a_run_with_a_measured_rate_and_its_resumption(train: Train) -> None:
    outcome = train("optimization.learning_rate=auto", "max_steps=10", "scheduler=constant", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if "learning_rate=auto: " in line]
    rate = float(read_table(Path("run/metrics.csv"))[-1]["learning_rate"])
    assert float(line.rpartition(": ")[2]) == pytest.approx(rate, rel=1e-2)
    assert 2e-4 < rate < 2e-2
    outcome = train("resume=run", "max_steps=12")
    assert outcome.code == 0, outcome.err
    assert "learning_rate=auto" not in outcome.out
    assert float(read_table(Path("run/metrics.csv"))[-1]["learning_rate"]) == rate


def test_another_word_is_refused(train: Train) -> None:
    expected = "optimization.learning_rate must be a positive number, or auto, got 'atuo'"
    assert expected in train("optimization.learning_rate=atuo").error_line()


def test_derivatives_that_are_left_out_are_logged_and_stop_the_run(train: Train) -> None:
    common = ("model._target_=own_models.Kink", "log_every=1", "scheduler=constant")
    assert train(*common, "max_steps=3", "hydra.run.dir=short").code == 0
    events = EventAccumulator("short").Reload().Scalars("grad/skipped")
    assert [event.value for event in events] == [1, 2, 3]
    outcome = train(*common, "max_steps=30", "hydra.run.dir=long")
    assert outcome.code != 0
    assert "not finite in 10 steps in a row, 10 of them in all; lower the learning rate" in outcome.err
