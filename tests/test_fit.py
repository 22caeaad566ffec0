"""Training in one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fwdgrad
from fwdgrad.data import load_dataset
from fwdgrad.fit import METHODS, History

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_loss(method: str) -> None:
    options: dict[str, Any] = {"num_directions": 8} if "fwdgrad" in method or method == "spsa" else {}
    net = model()
    before = F.cross_entropy(net(X), Y).item()
    history = fwdgrad.fit(net, (X, Y), (X, Y), method=method, epochs=10, lr=0.02, progress=False, **options)
    assert len(history) == 10 and history[-1]["epoch"] == 10
    assert history[-1]["val_loss"] < 0.9 * before
    with torch.no_grad():
        assert history[-1]["val_loss"] == pytest.approx(F.cross_entropy(net(X), Y).item(), rel=1e-5)
        assert history[-1]["val_accuracy"] == (net(X).argmax(1) == Y).double().mean().item()
    assert net.training


def test_tensors_splits_and_loaders() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=32)
    assert len(fwdgrad.fit(model(), loader, loader, method="backprop", epochs=2, progress=False)) == 2
    digits = load_dataset("digits")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    history = fwdgrad.fit(net, digits.train, digits.validation, epochs=3, lr=0.02, progress=False)
    assert history[-1]["val_accuracy"] > 0.8


def test_the_same_seed_gives_the_same_history() -> None:
    runs = [fwdgrad.fit(model(), (X, Y), epochs=2, seed=seed, progress=False) for seed in (1, 1, 2)]
    first, same, other = ([row["train_loss"] for row in run] for run in runs)
    assert first == same != other


def test_regression_with_an_optimizer_and_an_estimator_of_ones_own() -> None:
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    history = fwdgrad.fit(
        net,
        (X, X.sum(1, keepdim=True)),
        (X, X.sum(1, keepdim=True)),
        method=fwdgrad.ForwardGradient(num_directions=4),
        loss=F.mse_loss,
        optimizer=optimizer,
        epochs=20,
        progress=False,
    )
    assert "val_accuracy" not in history[-1] and history[-1]["val_loss"] < 0.1
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_history_is_read_as_a_table_and_a_curve() -> None:
    history = fwdgrad.fit(model(), (X, Y), (X, Y), epochs=2, progress=False)
    lines = str(history).splitlines()
    assert lines[0].split() == ["epoch", "train_loss", "val_loss", "val_accuracy", "seconds"] and len(lines) == 3
    assert history._repr_html_() == f"<pre>{history}</pre>"
    axes = history.plot()
    assert [line.get_label() for line in axes.get_lines()] == ["train loss", "val loss"]
    assert str(History()) == "no epoch finished"


def test_the_bar_shows_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    fwdgrad.fit(model(), (X, Y), (X, Y), epochs=1)
    assert "val_accuracy=" in capsys.readouterr().err


def test_an_interruption_keeps_the_history() -> None:
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return F.cross_entropy(outputs, targets)

    assert len(fwdgrad.fit(model(), (X, Y), method="backprop", loss=loss, epochs=5, progress=False)) == 1


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"method must be one of .* Did you mean 'activity'"):
        fwdgrad.fit(model(), (X, Y), method="activty")
    with pytest.raises(ValueError, match="belong to a method given by a word"):
        fwdgrad.fit(model(), (X, Y), method=fwdgrad.Backprop(), num_directions=2)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1; lower lr"):
        fwdgrad.fit(model(), (X * float("nan"), Y), method="fwdgrad", progress=False)
