"""A batch taken in parts: the same loss and exact gradient, an estimate for each part, memory for one part."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from command import Train, read_json, read_table, train
from torch import nn

from fwdgrad import Backprop, ForwardGradient
from fwdgrad.estimators import Estimator
from fwdgrad.memory import peak_bytes
from fwdgrad.optim import FactoredSGD
from fwdgrad.training import load_checkpoint
from fwdgrad.training.estimation import estimate

__all__ = ["train"]  # a fixture


def weights(folder: str) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_checkpoint(Path(folder))["model"].values()])


@pytest.mark.parametrize("method", ["backprop", "fwdgrad", "fwdgrad_inplace", "activity"])
def test_parts_add_up_to_the_batch(train: Train, method: str) -> None:
    # Batches of 64, and a last one of 9: parts of 20, 20, 20, 4.
    common = (f"optimization={method}", "optimization.learning_rate=1e-3", "model=mlp_small")
    for name, more in {
        "whole": (),
        "parts": ("dataset.micro_batch_size=20",),
        "one": ("dataset.micro_batch_size=64",),
    }.items():
        assert train(*common, "max_steps=1", *more, f"hydra.run.dir={name}").code == 0
    losses = {name: float(read_table(Path(name, "metrics.csv"))[0]["train_loss"]) for name in ("whole", "parts", "one")}
    assert losses["parts"] == pytest.approx(losses["whole"], rel=1e-6)
    assert torch.equal(weights("one"), weights("whole"))
    same = torch.allclose(weights("parts"), weights("whole"), rtol=0, atol=1e-8)
    assert same == (method == "backprop")  # the others give each part directions of its own


def test_a_run_in_parts_resumes(train: Train) -> None:
    common = ("dataset.micro_batch_size=20", "optimizer=adam")
    assert train(*common, "max_steps=9", "hydra.run.dir=whole").code == 0
    assert train(*common, "max_steps=5", "hydra.run.dir=cut").code == 0
    assert train("resume=cut", "max_steps=9").code == 0
    assert torch.equal(weights("cut"), weights("whole"))
    assert (
        read_json(Path("cut/metrics.json"))["test_accuracy"] == read_json(Path("whole/metrics.json"))["test_accuracy"]
    )


def test_the_mean_over_parts_weighs_each_by_its_examples() -> None:
    model = nn.Linear(4, 3)
    inputs, targets = torch.randn(10, 4), torch.randint(3, (10,))
    found = {}
    for size in (4, None):
        model.zero_grad()
        loss = estimate(Backprop(), model, nullcontext, inputs, targets, size)
        found[size] = (loss, model.weight.grad)
    torch.testing.assert_close(found[4], found[None])


@pytest.mark.parametrize("parts", [1, 2])
def test_a_forward_gradient_in_two_parts_takes_the_memory_of_inference(parts: int) -> None:
    depth, width, batch = 30, 64, 512
    model = nn.Sequential(*[layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())])
    inputs, targets = torch.randn(batch, width), torch.randint(width, (batch,))
    optimizer = FactoredSGD(model.parameters(), lr=1e-3)
    estimator: Estimator = ForwardGradient("normal", engine="dual", replay=True, optimizer=optimizer)

    def inference() -> None:
        with torch.no_grad():
            model(inputs)

    def step() -> None:
        optimizer.zero_grad()
        estimate(estimator, model, nullcontext, inputs, targets, batch // parts)
        optimizer.step()

    step()
    inference()
    limit = 1.25 * peak_bytes(inference) + 4 * width * (width + 1)
    assert (peak_bytes(step) <= limit) == (parts == 2)
