"""What is refused, what is put back, replicas, LightningCLI and Fabric."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fwdgrad
from fwdgrad.optim import FactoredSGD

pytest.importorskip("lightning")

from lightning.fabric import Fabric
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning_samples import HERE, Classifier, classifier, flat, loader, trainer

from fwdgrad.integrations.lightning import TrainWith, check_supported

pytestmark = pytest.mark.filterwarnings("ignore")  # those of Lightning itself


class TwoOptimizers(Classifier):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.net[0].parameters(), 0.1), torch.optim.SGD(self.net[4].parameters(), 0.1)]


class Manual(TwoOptimizers):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class OwnBackward(Classifier):
    def backward(self, loss: Tensor) -> None:
        loss.backward()


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (TwoOptimizers, RuntimeError, "multiple optimizers is only supported with manual optimization"),
        (Manual, ValueError, "use one optimizer, or call estimator\\(self, closure\\)"),
        (OwnBackward, ValueError, "overrides backward\\(\\)"),
    ],
)
def test_refused_modules(module: type[LightningModule], error: type[Exception], text: str) -> None:
    model = module()
    with pytest.raises(error, match=text):
        trainer(TrainWith(fwdgrad.ForwardGradient())).fit(model, loader())
    assert type(model) is module


def test_refused_settings() -> None:
    model = classifier()
    estimator = fwdgrad.ForwardGradient(optimizer=FactoredSGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="leave out optimizer="):
        trainer(TrainWith(estimator)).fit(model, loader())
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    settings: Any = SimpleNamespace(precision_plugin=scaled, strategy=trainer().strategy)
    with pytest.raises(ValueError, match="use precision='bf16-mixed'"):
        check_supported(settings, model, fwdgrad.ForwardGradient())
    settings = SimpleNamespace(precision_plugin=None, strategy=FSDPStrategy())
    with pytest.raises(ValueError, match="FSDPStrategy shards what an estimator needs whole"):
        check_supported(settings, model, fwdgrad.ForwardGradient())


def test_the_module_gets_its_class_back() -> None:
    model = classifier()
    trainer(TrainWith(fwdgrad.ForwardGradient())).fit(model, loader())
    assert type(model) is Classifier and "fwdgrad_step" not in vars(model)

    class Breaks(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            assert isinstance(self, Breaks)
            raise ArithmeticError

    broken = Breaks()
    with pytest.raises(ArithmeticError):
        trainer(TrainWith(fwdgrad.ForwardGradient())).fit(broken, loader())
    assert type(broken) is Breaks
    assert all(param.grad is None for param in broken.parameters())


def test_two_processes_stay_equal_by_exchanging_directional_derivatives_alone() -> None:
    command = [sys.executable, str(HERE / "replicas_lightning.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    # Two barriers of Lightning's, then the three derivatives of each of the 20 steps.
    assert "rank 0: equal True, trained True, different data True, exchanged [1, 1] [3] * 20" in run.stdout, run.stdout


def test_lightning_cli() -> None:
    pytest.importorskip("jsonargparse")
    quiet = ["logger=false", "enable_checkpointing=false", "enable_progress_bar=false", "enable_model_summary=false"]
    arguments = ["fit", "--model.width=4", "--trainer.accelerator=cpu", "--trainer.max_steps=3"]
    arguments += [f"--trainer.{setting}" for setting in quiet]
    arguments += [
        "--trainer.callbacks=fwdgrad.integrations.lightning.TrainWith",
        "--trainer.callbacks.estimator=fwdgrad.ForwardGradient",
        "--trainer.callbacks.estimator.engine=dual",
        "--trainer.callbacks.estimator.num_directions=2",
    ]

    class WithData(Classifier):
        def train_dataloader(self) -> Any:
            return loader()

    cli = LightningCLI(WithData, args=arguments, save_config_callback=None)
    (callback,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, TrainWith)]
    assert isinstance(callback.estimator, fwdgrad.ForwardGradient)
    assert callback.estimator.step == 3 and callback.estimator.num_directions == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("engine", ["dual", "func"])
def test_fabric(engine: str, precision: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    net = classifier().net
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), lr=1.0))
    before = flat(net)
    estimator = fwdgrad.ForwardGradient(engine=engine, num_directions=2)
    nodes = torch._C._autograd._get_sequence_nr()
    for x, y in fabric.setup_dataloaders(loader(2)):
        optimizer.zero_grad()
        estimator(model, lambda model, x=x, y=y: F.cross_entropy(model(x), y))
        fabric.clip_gradients(model, optimizer, max_norm=0.01)
        optimizer.step()
    assert torch._C._autograd._get_sequence_nr() == nodes
    assert 0.005 < (flat(net) - before).norm() <= 0.0201
    assert net[1].num_batches_tracked == 2
