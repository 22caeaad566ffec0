"""Training through the real Lightning Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fwdgrad

pytest.importorskip("lightning")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_samples import Classifier, classifier, flat, loader, trainer

from fwdgrad.integrations.lightning import TrainWith

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Lightning itself

ESTIMATORS: dict[str, dict[str, Any]] = {
    "dual": {"engine": "dual", "num_directions": 3},
    "dual-chunks": {"engine": "dual", "num_directions": 3, "chunk_size": 1},
    "func": {"engine": "func"},
    "func-vmap": {"engine": "func", "num_directions": 3},
    "finite_difference": {"engine": "finite_difference", "num_directions": 2},
}


def forward(name: str = "dual") -> fwdgrad.ForwardGradient:
    return fwdgrad.ForwardGradient("rademacher", **ESTIMATORS[name])


class SeedEachStep(Callback):
    """Makes dropout draw the same numbers here and there."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        torch.manual_seed(index)


def by_hand(model: Classifier, estimator: fwdgrad.Estimator, batches: int, accumulate: int = 1) -> None:
    """The ordinary loop, without Lightning."""
    optimizer = torch.optim.SGD(model.parameters(), lr=model.lr)
    for index, (x, y) in enumerate(loader(batches)):
        torch.manual_seed(index)
        estimator(model, lambda m, x=x, y=y: F.cross_entropy(m.net(x), y) / accumulate)
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_fit_does_what_the_ordinary_loop_does(name: str) -> None:
    """In particular the estimate survives Lightning's zero_grad, and BatchNorm and dropout are met once a step."""
    model, same = classifier(), classifier()
    before = flat(model)
    trainer(TrainWith(forward(name)), SeedEachStep()).fit(model, loader())
    by_hand(same, forward(name), 4)
    assert not torch.equal(flat(model), before)
    torch.testing.assert_close(flat(model), flat(same))
    torch.testing.assert_close(model.net[1].running_var, same.net[1].running_var)
    assert model.net[1].num_batches_tracked == 4


def test_accumulation_adds_up_estimates() -> None:
    model, same = classifier(), classifier()
    trainer(TrainWith(forward()), SeedEachStep(), accumulate_grad_batches=2).fit(model, loader(4))
    by_hand(same, forward(), 4, accumulate=2)
    torch.testing.assert_close(flat(model), flat(same))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping(algorithm: str) -> None:
    model = classifier(lr=1.0)
    before = flat(model)
    clip = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm}
    trainer(TrainWith(forward()), max_steps=1, **clip).fit(model, loader())
    change = flat(model) - before
    size = change.norm() if algorithm == "norm" else change.abs().max()
    assert size.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("name", ["dual", "func", "func-vmap", "finite_difference"])
def test_bfloat16_forward_passes_and_float32_estimates(name: str) -> None:
    seen = {}
    for precision in ("32-true", "bf16-mixed"):
        model, estimator = classifier(width=64), forward(name)
        model.net[3] = nn.Identity()
        trainer(TrainWith(estimator), max_steps=1, precision=precision).fit(model, loader())
        assert estimator.last.directional_derivatives.dtype == torch.float32
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        seen[precision] = model.net[4].weight.grad, estimator.last.directional_derivatives
    (grad, exact), (rounded_grad, rounded) = seen.values()
    assert not torch.equal(rounded, exact)
    if name == "finite_difference":  # a difference of two values of 8 bits has few of its own
        return
    assert (rounded - exact).norm() < 0.05 * exact.norm()
    # Were the estimate put together under autocast, its entries would be bfloat16 numbers.
    assert not torch.equal(rounded_grad.bfloat16().float(), rounded_grad)
    assert (rounded_grad - grad).norm() < 0.05 * grad.norm()


class Watch(Callback):
    """Notes what Lightning sees of each step."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.losses: list[Any] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.nodes.append(-torch._C._autograd._get_sequence_nr())

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *args: Any) -> None:
        self.nodes[-1] += torch._C._autograd._get_sequence_nr()
        self.losses.append(outputs["loss"])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_autograd_graph_is_built(name: str) -> None:
    watch = Watch()
    trainer(TrainWith(forward(name)), watch, accumulate_grad_batches=2, gradient_clip_val=1.0).fit(
        classifier(optimizer="Adam"), loader()
    )
    assert watch.nodes == [0, 0, 0, 0]
    assert not any(loss.requires_grad for loss in watch.losses)
    trainer(TrainWith(fwdgrad.Backprop()), watch).fit(classifier(), loader())
    assert watch.nodes[-1] > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_log_is_called_once_a_step_with_plain_tensors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    log = LightningModule.log

    def spy(self: LightningModule, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        calls.append((name, value))
        log(self, name, value, *args, **kwargs)

    monkeypatch.setattr(LightningModule, "log", spy)
    watch, model = Watch(), classifier()
    trained = trainer(TrainWith(forward(name)), watch)
    trained.fit(model, loader())
    assert [key for key, _ in calls] == ["loss", "twice", "number", "accuracy"] * 4
    values = [value for key, value in calls if key == "loss"]
    for value, seen in zip(values, watch.losses, strict=True):
        assert type(value) is Tensor and not value.requires_grad
        assert not torch._C._functorch.is_functorch_wrapped_tensor(value)
        assert value.item() == pytest.approx(seen.item(), rel=1e-6)
    assert model.accuracy.tp.device.type == "cpu"
    assert 0 <= trained.callback_metrics["accuracy"].item() <= 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_metrics_count_each_example_once(name: str) -> None:
    model, counts = classifier(), []

    class Count(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            counts.append((model.accuracy.tp + model.accuracy.fn).item())

    trainer(TrainWith(forward(name)), Count()).fit(model, loader())
    assert counts == [16, 32, 48, 64]


def test_a_dict_and_its_other_entries_reach_the_callbacks() -> None:
    class Dict(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.net(batch[0])
            return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits, "index": batch_idx}

    outputs: list[Any] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, output: Any, *args: Any) -> None:
            outputs.append(output)

    for name in ESTIMATORS:
        trainer(TrainWith(forward(name)), Keep(), max_steps=1).fit(Dict(), loader())
        assert outputs[-1]["logits"].sum().item() == pytest.approx(
            sum(outputs[-1]["logits"].flatten().tolist()), rel=1e-4
        )
        assert outputs[-1]["logits"].shape == (16, 3) and outputs[-1]["index"] == 0


def test_a_step_that_returns_none_is_skipped() -> None:
    class Skips(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)

    model, estimator = Skips(), forward()
    trainer(TrainWith(estimator)).fit(model, loader())
    assert estimator.step == 3


def test_a_resumed_run_ends_as_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    def run(stop: int, resume: Path | None = None) -> Classifier:
        model = classifier(optimizer="Adam", decay=0.9)
        model.net[3] = nn.Identity()
        fit = trainer(
            TrainWith(fwdgrad.ForwardGradient(engine="dual")),
            ModelCheckpoint(tmp_path, filename=f"until-{stop}", save_last=False),
            max_epochs=stop,
            enable_checkpointing=True,
        )
        fit.fit(model, loader(), ckpt_path=None if resume is None else str(resume))
        return model

    whole = run(4)
    run(2)
    resumed = run(4, tmp_path / "until-2.ckpt")
    assert torch.equal(flat(resumed), flat(whole))


def test_loggers_schedulers_and_callbacks_work(tmp_path: Path) -> None:
    model = classifier(optimizer="Adam", lr=0.05, decay=0.5)
    logger = CSVLogger(tmp_path)
    callbacks = [LearningRateMonitor("epoch"), EarlyStopping("loss", patience=50)]
    fit = trainer(TrainWith(forward()), *callbacks, logger=logger, max_epochs=3)
    fit.fit(model, loader())
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    losses = [row.split(",")[rows[0].split(",").index("loss")] for row in rows[1:]]
    assert sum(bool(loss) and math.isfinite(float(loss)) for loss in losses) == 12
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 / 8)


def test_activity_perturbation_learns() -> None:
    class PerExample(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            losses = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
            self.log("loss", losses.mean())
            return losses

    torch.manual_seed(0)
    model = PerExample(lr=0.05, optimizer="Adam", width=16)
    model.net[1] = nn.LayerNorm(16)
    fit = trainer(TrainWith(fwdgrad.ActivityPerturbation()), max_epochs=10)
    fit.fit(model, loader(16))
    assert fit.callback_metrics["loss"].item() < 0.5
