"""Every file in ``configs/`` is composed, instantiated and run for a step; new files are covered by being there."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fwdgrad import Backprop, ForwardGradient, cli, experiment
from fwdgrad.data import DATASETS, Dataset, Split
from fwdgrad.functional import Closure
from fwdgrad.training import Trainer


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (cli.CONFIGS / group).glob("*.yaml"))


def of_training(experiment: str) -> bool:
    """Say whether a file of ``experiment/`` is for training, rather than for global optimisation."""
    return "/function" not in (cli.CONFIGS / "experiment" / f"{experiment}.yaml").read_text()


def fake_dataset(name: str, *arguments: object) -> Dataset:
    """Return a dataset of the published shape with a few random examples."""
    info = DATASETS[name]
    generator = torch.Generator().manual_seed(0)
    split = Split(
        torch.randn(12, *info.input_shape, generator=generator),
        torch.randint(info.num_classes, (12,), generator=generator),
    )
    return Dataset(name, split, split, split, info.input_shape, info.num_classes)


@pytest.fixture(autouse=True)
def _small_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(experiment.building, "load_dataset", fake_dataset)
    yield
    GlobalHydra.instance().clear()


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=["dataset.batch_size=4", *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg


def run_steps(folder: Path, *overrides: str) -> Trainer:
    """Run the composed configuration for a step, and check that a step was made."""
    trainer = experiment.make_trainer(composed("max_steps=1", *overrides), folder)
    before = {name: param.detach().clone() for name, param in trainer.model.named_parameters()}
    score = trainer.run()
    trainer.tracker.close()
    assert trainer.step == 1
    assert math.isfinite(score.loss) and 0 <= score.accuracy <= 1
    assert any(not torch.equal(before[name], param) for name, param in trainer.model.named_parameters())
    return trainer


SLIM = {"conv": ["model.channels=4", "model.hidden=8"], "mlp": ["model.hidden=[8,8]"]}
# A ResNet costs seconds a step whatever the data; it runs once, below.
MODELS_AND_DATASETS = list(itertools.product(sorted(set(files("model")) - {"resnet18"}), files("dataset")))
GRID = [(method, *pair) for method in files("optimization") for pair in MODELS_AND_DATASETS]


@pytest.mark.parametrize(("optimization", "model", "dataset"), GRID)
def test_every_method_trains_every_model_on_every_dataset(
    tmp_path: Path, optimization: str, model: str, dataset: str
) -> None:
    run_steps(
        tmp_path,
        *(f"optimization={optimization}", f"model={model}", f"dataset={dataset}", "dataset.download=false"),
        *SLIM.get(model, []),
    )


def loss_curve(
    monkeypatch: pytest.MonkeyPatch, method: type[ForwardGradient] | type[Backprop], folder: Path, *overrides: str
) -> list[float]:
    """Return the training loss of each step of a run whose steps are large enough to tell two gradients apart."""
    losses: list[float] = []
    step: Any = method.__call__

    def recorded(self: Any, model: nn.Module, closure: Closure) -> torch.Tensor:
        loss: torch.Tensor = step(self, model, closure)
        losses.append(loss.item())
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(method, "__call__", recorded)
        name = {ForwardGradient: "fwdgrad", Backprop: "backprop"}[method]
        settings = (f"optimization={name}", "optimization.learning_rate=1e-2", "optimization.clip_norm=10")
        trainer = experiment.make_trainer(composed(*settings, *overrides), folder)
        trainer.run()
        trainer.tracker.close()
    return losses


@pytest.mark.parametrize(("model", "dataset"), [*MODELS_AND_DATASETS, ("resnet18", "digits")])
def test_both_engines_give_every_model_the_same_loss_curve_on_every_dataset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, dataset: str
) -> None:
    chosen = [f"model={model}", f"dataset={dataset}", "dataset.download=false", *SLIM.get(model, [])]
    chosen.append("max_steps=2" if model == "resnet18" else "max_steps=5")
    curves = {
        name: loss_curve(monkeypatch, ForwardGradient, tmp_path / name, *chosen, *keys)
        for name, keys in {"func": ["engine=func"], "dual": ["engine=dual"], "other": ["engine=dual", "seed=1"]}.items()
    }
    assert curves["dual"] == pytest.approx(curves["func"], rel=1e-4)
    assert curves["other"] != pytest.approx(curves["func"], rel=1e-4)


@pytest.mark.parametrize("model", files("model"))
def test_the_tape_gives_every_model_the_loss_curve_of_autograd(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    chosen = [f"model={model}", *SLIM.get(model, []), "max_steps=2" if model == "resnet18" else "max_steps=5"]
    tape, wrong = ["engine=tape"], ["engine=tape", "optimization.learning_rate=1.1e-2"]
    curves = {
        name: loss_curve(monkeypatch, Backprop, tmp_path / name, *chosen, *keys)
        for name, keys in {"autograd": ["engine=autograd"], "tape": tape, "wrong": wrong}.items()
    }
    assert curves["tape"] == pytest.approx(curves["autograd"], rel=5e-5)
    assert curves["wrong"] != pytest.approx(curves["autograd"], rel=5e-5)


@pytest.mark.parametrize("dataset", files("dataset"))
def test_a_dataset_file_states_the_shapes_of_its_dataset(dataset: str) -> None:
    cfg = composed(f"dataset={dataset}")
    info = DATASETS[cfg.dataset.name]
    assert dataset == cfg.dataset.name
    assert (tuple(cfg.dataset.input_shape), cfg.dataset.num_classes) == (info.input_shape, info.num_classes)
    assert cfg.dataset.validation_size == info.validation_size


@pytest.mark.parametrize("optimizer", files("optimizer"))
@pytest.mark.parametrize("scheduler", files("scheduler"))
def test_every_optimizer_works_with_every_scheduler(tmp_path: Path, optimizer: str, scheduler: str) -> None:
    trainer = run_steps(
        tmp_path, f"optimizer={optimizer}", f"scheduler={scheduler}", "optimization.learning_rate=0.125"
    )
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 0.125


@pytest.mark.parametrize("name", [name for name in files("experiment") if of_training(name)])
def test_every_experiment_runs(tmp_path: Path, name: str) -> None:
    run_steps(tmp_path, f"experiment={name}")


@pytest.mark.parametrize("name", files("tuned"))
def test_every_tuned_file_is_found_by_its_name_and_runs(tmp_path: Path, name: str) -> None:
    dataset, model, optimization = name.split("-")
    chosen = (f"dataset={dataset}", f"model={model}", f"optimization={optimization}")
    tuned = OmegaConf.load(cli.CONFIGS / "tuned" / f"{name}.yaml")
    cfg = composed(*chosen)
    tuned.pop("defaults", None)
    assert OmegaConf.merge(cfg, tuned) == cfg
    run_steps(tmp_path, *chosen)


def test_what_the_command_line_says_wins_over_tuned_settings() -> None:
    cfg = composed("epochs=3", "optimization.learning_rate=0.5")
    assert (cfg.epochs, cfg.optimization.learning_rate, cfg.optimizer.lr) == (3, 0.5, 0.5)


@pytest.mark.parametrize("name", files("hparams_search"))
def test_a_search_varies_keys_that_exist(name: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(cli.CONFIGS), version_base="1.3"):
        cfg = compose("train", overrides=[f"hparams_search={name}"], return_hydra_config=True)
        for key, space in cfg.hydra.sweeper.params.items():
            assert OmegaConf.select(cfg, key) is not None, key
            OverridesParser.create().parse_override(f"{key}={space}")


def test_the_fwdgrad_file_is_the_algorithm_of_the_paper() -> None:
    cfg = composed("optimization=fwdgrad", "model=mlp")
    method = {key: cfg.optimization[key] for key in ("direction", "num_directions", "engine", "learning_rate")}
    assert method == {"direction": "normal", "num_directions": 1, "engine": "func", "learning_rate": 2e-4}
    assert cfg.optimizer == {"_target_": "torch.optim.SGD", "lr": 2e-4, "momentum": 0.0, "weight_decay": 0.0}
    assert cfg.scheduler == {"_target_": "fwdgrad.training.exponential_decay", "rate": 1e-4}


def test_the_learning_rate_decays_exponentially_by_step(tmp_path: Path) -> None:
    cfg = composed("max_steps=7", "scheduler.rate=0.25", "optimization.learning_rate=0.5")
    trainer = experiment.make_trainer(cfg, tmp_path)
    trainer.run()
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * math.exp(-0.25 * 7), rel=1e-12)


def test_backprop_has_the_optimizer_and_the_schedule_of_fwdgrad() -> None:
    configs = [composed(f"optimization={name}", "model=mlp") for name in ("fwdgrad", "backprop")]
    assert configs[0].optimizer == configs[1].optimizer
    assert configs[0].scheduler == configs[1].scheduler


@pytest.mark.parametrize("optimization", ["fwdgrad", "backprop"])
def test_resnet18_ends_with_the_buffers_of_a_plain_forward_pass(tmp_path: Path, optimization: str) -> None:
    cfg = composed(f"optimization={optimization}", "model=resnet18", "max_steps=1", "dataset.batch_size=2")
    trainer = experiment.make_trainer(cfg, tmp_path)
    inputs, _ = next(trainer.batches.epoch(0))
    plain = experiment.make_trainer(cfg, tmp_path).model.train()
    with torch.no_grad():
        plain(inputs)
    trainer.run()
    trainer.tracker.close()
    expected = dict(plain.named_buffers())
    assert expected and all(int(value) == 1 for name, value in expected.items() if "num_batches" in name)
    for name, buffer in trainer.model.named_buffers():
        torch.testing.assert_close(buffer, expected[name], msg=name)
