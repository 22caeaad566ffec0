"""What a run leaves behind: TensorBoard's events, metrics.csv, metrics.json, status.json, a progress bar."""

import io
import json
import logging
import math
import re
import sys
from pathlib import Path

import pytest
from command import Train, read_json, read_table, run_folders, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from fwdgrad.training.progress import Progress
from fwdgrad.training.tracking import write_json, write_status

__all__ = ["train"]  # a fixture

TAGS = {
    *("train/loss", "val/loss", "val/accuracy", "test/loss", "test/accuracy", "optim/lr"),
    *("perf/steps_per_second", "grad/norm", "final/test_accuracy", "final/val_accuracy"),
}
METRICS = (
    *("test_accuracy", "test_loss", "val_accuracy", "val_loss", "train_loss", "steps", "epochs", "seconds"),
    *("seconds_per_step", "examples_per_second", "peak_memory_bytes", "seed", "method"),
)


@pytest.mark.parametrize("method", ["fwdgrad", "fwdgrad_fast", "backprop"])
def test_a_run_folder_is_complete(train: Train, method: str) -> None:
    outcome = train(f"optimization={method}", "epochs=2", "log_every=4", "optimization.learning_rate=0.25")
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders()
    assert re.fullmatch(rf"\d\d-\d\d-\d\d-\d{{6}}-digits-logistic-{method}", folder.name)
    assert read_json(folder / "status.json") == {"status": "finished"}
    for name in ("config.yaml", "overrides.yaml", "hydra.yaml"):
        assert (folder / ".hydra" / name).is_file()
    assert "test accuracy" in (folder / "run.log").read_text()

    metrics = read_json(folder / "metrics.json")
    assert tuple(metrics) == METRICS
    assert (metrics["steps"], metrics["epochs"], metrics["seed"]) == (36, 2.0, 0)
    assert metrics["peak_memory_bytes"] > 0 and metrics["seconds_per_step"] > 0

    first, second = read_table(folder / "metrics.csv")
    assert (first["step"], first["epoch"], second["step"], second["epoch"]) == ("18", "1.0", "36", "2.0")
    assert float(second["val_accuracy"]) == metrics["val_accuracy"]
    assert float(second["train_loss"]) == metrics["train_loss"]
    assert float(second["learning_rate"]) == pytest.approx(0.25 * math.exp(-36e-4), rel=1e-12)

    events = EventAccumulator(str(folder)).Reload()
    derivative = {"grad/directional_derivative"} if method != "backprop" else set()
    assert set(events.Tags()["scalars"]) == TAGS | derivative
    assert [event.step for event in events.Scalars("train/loss")] == list(range(4, 37, 4))
    assert [event.step for event in events.Scalars("test/accuracy")] == [36]
    assert events.Scalars("test/accuracy")[0].value == pytest.approx(metrics["test_accuracy"])
    # The rate that a step was made with: that of the fourth step has decayed three times.
    assert events.Scalars("optim/lr")[0].value == pytest.approx(0.25 * math.exp(-3e-4))


def test_hyper_parameters_lie_in_the_same_run(train: Train) -> None:
    settings = ("max_steps=2", "optimization.num_directions=3", "optimization.learning_rate=0.25")
    assert train("optimization=fwdgrad", "model=mlp_small", "model.hidden=[7]", *settings).code == 0
    (folder,) = run_folders()
    assert len(list(folder.rglob("events.out.tfevents.*"))) == 1
    content = EventAccumulator(str(folder)).Reload().PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    shown = {key: value.string_value or value.number_value for key, value in start.hparams.items()}
    expected = {"method": "ForwardGradient", "dataset": "digits", "model": "mlp", "optimizer": "SGD", "seed": 0.0}
    expected |= {"optimization.num_directions": 3.0, "optimization.learning_rate": 0.25, "model.hidden": "[7]"}
    assert {key: shown[key] for key in expected} == expected


@pytest.mark.parametrize("engine", ["func", "dual"])
def test_reduced_precision_combines_derivatives_in_float32(
    train: Train, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    import torch

    from fwdgrad.training import Trainer

    seen = []
    real = Trainer._train_step

    def train_step(self: Trainer, *arguments: object) -> None:
        real(self, *arguments)  # type: ignore[arg-type]
        hidden = []
        hook = self.model[1].register_forward_hook(lambda *call: hidden.append(call[-1].dtype))
        self.evaluate("test")
        hook.remove()
        record = self.estimator.last
        seen.append((hidden[0], record.directional_derivatives.dtype, self.model[1].weight.dtype))

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    outcome = train("precision=bfloat16", "model=mlp_small", "max_steps=2", f"engine={engine}")
    assert outcome.code == 0, outcome.err
    assert seen == [(torch.bfloat16, torch.float32, torch.float32)] * 2


def test_a_schedule_that_follows_the_validation_loss(train: Train) -> None:
    outcome = train(
        "epochs=4",
        *("scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau", "~scheduler.rate", "+scheduler.factor=0.5"),
        *("+scheduler.patience=0", "+scheduler.threshold=1e9", "+scheduler.threshold_mode=abs"),
    )
    assert outcome.code == 0, outcome.err
    (folder,) = run_folders()
    rates = [float(row["learning_rate"]) for row in read_table(folder / "metrics.csv")]
    assert rates == [0.005, 0.005, 0.0025, 0.00125]


def test_clipping_bounds_the_update(train: Train) -> None:
    common = ("log_every=1", "max_steps=5", "scheduler=constant")
    assert train(*common, "hydra.run.dir=free").code == 0
    norms = [event.value for event in EventAccumulator("free").Reload().Scalars("grad/norm")]
    assert min(norms) > 1
    for method in ("fwdgrad", "fwdgrad_fast"):
        assert (
            train(*common, f"optimization={method}", "optimization.clip_norm=1e-6", f"hydra.run.dir={method}").code == 0
        )
        losses = [float(row["val_loss"]) for row in read_table(Path(method, "metrics.csv"))]
        assert train("max_steps=0", f"hydra.run.dir={method}-start").code == 0
        assert losses[-1] == pytest.approx(read_json(Path(f"{method}-start/metrics.json"))["val_loss"], abs=1e-5)


def test_status_keeps_the_reason_and_drops_old_ones(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", ValueError("too large"))
    assert read_json(tmp_path / "status.json") == {"status": "failed", "reason": "ValueError: too large"}
    assert (tmp_path / "traceback.txt").read_text() == "ValueError: too large\n"
    write_status(tmp_path, "running")
    assert read_json(tmp_path / "status.json") == {"status": "running"}
    assert not (tmp_path / "traceback.txt").exists()


def test_json_has_no_word_for_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"nan": math.nan, "inf": -math.inf, "one": 1.0, "word": "nan"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"nan": None, "inf": None, "one": 1.0, "word": "nan"}


def test_the_bar_shows_figures_and_lets_log_lines_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    logging.getLogger().addHandler(handler)
    try:
        bar = Progress(total=40, initial=10, show=True)
        bar.update(20, loss=2.25)
        bar._bar.refresh()
        logging.getLogger().warning("a line")
        bar.update(30, accuracy=0.5)
        bar._bar.refresh()
        bar.close()
    finally:
        logging.getLogger().removeHandler(handler)
    last = terminal.getvalue().split("\r")
    assert any(re.search(r"30/40 \[.*<.*step.*, loss=2.2500, accuracy=0.5000\]", line) for line in last)
    assert "a line\n" in terminal.getvalue()


def test_no_bar_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    bar = Progress(total=4)
    bar.update(3, loss=1.0)
    bar.close()
    assert log.getvalue() == ""


@pytest.mark.parametrize("progress", ["true", "false"])
def test_progress_is_an_option(train: Train, progress: str) -> None:
    outcome = train("max_steps=20", f"progress={progress}")
    assert outcome.code == 0
    assert ("/20 [" in outcome.err) == (progress == "true")
