"""``compile=true``: the same numbers as eager, no graph made anew at every step, and a way back where it goes wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Train, read_json, train
from torch._dynamo.utils import counters

from fwdgrad import ForwardGradient
from fwdgrad.engines import Evaluation, func
from fwdgrad.training import load_checkpoint

__all__ = ["train"]  # a fixture

# Batches of 64 and a last one of 9: two graphs are needed, and no more.
NETS = ["dropout_net", "batch_norm_net"]
METHODS = ["fwdgrad", "backprop"]


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def _traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace and guard as the compiler does, but run the graph as it is: generating code takes seconds a graph."""
    real = torch.compile

    def compile(function: Callable[..., Any], *, fullgraph: bool, options: dict[str, bool]) -> Callable[..., Any]:
        assert fullgraph and options == {"fallback_random": True}
        return real(function, fullgraph=fullgraph, backend="eager")

    monkeypatch.setattr(torch, "compile", compile)


def assert_compiled_as_eager(train: Train, *overrides: str) -> None:
    """Assert that the command gives the same figures with and without ``compile=true``, from at most two graphs."""
    for folder, compiled in (("eager", "false"), ("compiled", "true")):
        outcome = train(*overrides, "epochs=2", f"compile={compiled}", f"hydra.run.dir={folder}")
        assert outcome.code == 0, outcome.err
        assert "WARNING" not in outcome.out
    assert 1 <= counters["stats"]["unique_graphs"] <= 2
    eager, compiled_ = (load_checkpoint(Path(folder))["model"] for folder in ("eager", "compiled"))
    for name, value in eager.items():
        torch.testing.assert_close(compiled_[name], value, rtol=1e-4, atol=1e-5, msg=name)
    losses = [read_json(Path(folder, "metrics.json"))["train_loss"] for folder in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.usefixtures("_traced_only")
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_command_compiles_without_a_break(train: Train, method: str, net: str) -> None:
    assert_compiled_as_eager(train, f"optimization={method}", f"model._target_=own_models.{net}")


@pytest.mark.usefixtures("_traced_only")
@pytest.mark.parametrize("method", METHODS)
def test_with_reduced_precision(train: Train, method: str) -> None:
    assert_compiled_as_eager(train, f"optimization={method}", "model=mlp_small", "precision=bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_the_compiler_itself(train: Train, method: str, net: str) -> None:
    assert_compiled_as_eager(train, f"optimization={method}", f"model._target_=own_models.{net}")


def losses_of(estimator: ForwardGradient, steps: int = 3) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = torch.randn(8, 4), torch.arange(8) % 3
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = estimator(model, lambda model: torch.nn.functional.cross_entropy(model(inputs), targets))
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("part", ["value", "derivatives"])
def test_a_wrong_result_is_noticed_and_not_used(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    expected = losses_of(ForwardGradient())

    def miscompile(function: Callable[..., Evaluation], **options: Any) -> Callable[..., Evaluation]:
        def wrong(*arguments: Any) -> Evaluation:
            right = function(*arguments)
            parts = {"value": right.value, "derivatives": right.derivatives, "aux": right.aux}
            return Evaluation(**{**parts, part: parts[part] * 1.1})

        return wrong

    monkeypatch.setattr(torch, "compile", miscompile)
    with pytest.warns(UserWarning, match="its compiled derivatives differ from the eager ones"):
        losses = losses_of(ForwardGradient(compile=True))
    assert losses == expected


def test_what_cannot_be_compiled_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = losses_of(ForwardGradient())

    def refuse(function: Callable[..., Evaluation], **options: Any) -> Callable[..., Evaluation]:
        def broken(*arguments: Any) -> Evaluation:
            raise RuntimeError("graph break")

        return broken

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.warns(UserWarning, match=r"no effect on this model: it could not be compiled \(graph break\)"):
        losses = losses_of(ForwardGradient(compile=True))
    assert losses == expected


@pytest.mark.parametrize("factor", [1.0, 1.005])
def test_rounding_is_no_difference(factor: float) -> None:
    derivatives = torch.tensor([0.3, -4.0, 2.0])
    assert func.agree(derivatives * factor, derivatives)
    assert not func.agree(derivatives * 1.05, derivatives)
    assert not func.agree(torch.tensor([float("nan"), -4.0, 2.0]), derivatives)
