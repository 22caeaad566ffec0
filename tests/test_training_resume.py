"""A run that was stopped and resumed ends, bit by bit, as the run that was never stopped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Train, read_json, read_table, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fwdgrad.training import Trainer, load_checkpoint

__all__ = ["train"]  # a fixture

# Batches of 64 of the digits' 1097 training examples: 18 steps an epoch.
RUNS = [
    ("optimization=fwdgrad", "optimizer.momentum=0.9"),
    ("optimization=fwdgrad", "optimizer=adam", "scheduler=cosine", "model._target_=own_models.dropout_net"),
    ("optimization=fwdgrad", "optimization.num_directions=3", "optimization.chunk_size=2", "optimization.clip_norm=1"),
    ("optimization=fwdgrad_fast", "scheduler=cosine", "model._target_=own_models.batch_norm_net"),
    ("optimization=fwdgrad_fast", "optimizer=adam", "model._target_=own_models.dropout_net"),
    ("optimization=local", "optimization.num_directions=2", "model._target_=own_models.dropout_net"),
    (
        "optimization=local",
        "model=local_mixer",
        "model.blocks=2",
        "model.patches=2",
        "model.channels=8",
        "model.groups=2",
    ),
    ("optimization=fwdgrad_fast", "optimization.control_variate=momentum", "optimization.clip_derivatives=1.5"),
    ("optimization=fwdgrad", "optimization.momentum_bias=0.3", "optimization.num_directions=2"),
    ("optimization=multi_tangent", "optimization.clip_derivatives=3", "optimization.learning_rate=auto"),
    ("optimization=backprop", "optimizer.momentum=0.9", "model._target_=own_models.dropout_net"),
    ("optimization=backprop", "optimizer=adamw", "scheduler=cosine", "model._target_=own_models.batch_norm_net"),
    ("optimization=fwdgrad_fast", "ema_decay=0.9", "model._target_=own_models.batch_norm_net"),
]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> pytest.MonkeyPatch:
    """Do something while, or at the end of, a step."""
    real = Trainer._train_step

    def train_step(self: Trainer, *arguments: Any) -> None:
        real(self, *arguments)
        if self.step == step:
            act()

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    return monkeypatch


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    """Stands for an end, such as SIGKILL, that lets nothing be saved."""


def kill() -> None:
    raise Killed


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Assert that two states are equal bit by bit, but for the time they took."""
    assert type(actual) is type(expected), where
    if isinstance(actual, torch.Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(actual, dict):
        assert actual.keys() == expected.keys(), where
        for key in actual.keys() - {"seconds"}:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(actual, list | tuple):
        assert len(actual) == len(expected), where
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert actual == expected, where


def assert_same_run(folder: str, other: str) -> None:
    assert_same(load_checkpoint(Path(folder)), load_checkpoint(Path(other)))
    tables = [read_table(Path(name, "metrics.csv")) for name in (folder, other)]
    assert tables[0]
    timeless = [[{key: row[key] for key in row if key != "seconds"} for row in table] for table in tables]
    assert timeless[0] == timeless[1]
    for key in ("test_accuracy", "test_loss", "val_accuracy", "train_loss", "steps", "epochs"):
        assert read_json(Path(folder, "metrics.json"))[key] == read_json(Path(other, "metrics.json"))[key]


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: " ".join(overrides))
@pytest.mark.parametrize(("step", "act"), [(36, interrupt), (29, kill)])
def test_resumed_is_never_stopped(
    train: Train, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], step: int, act: Callable[[], None]
) -> None:
    common = (*overrides, "epochs=3", "checkpoint_every=5")
    assert train(*common, "hydra.run.dir=whole").code == 0
    with monkeypatch.context() as patch:
        at_step(patch, step, act)
        if act is kill:
            with pytest.raises(Killed):
                train(*common, "hydra.run.dir=cut")
        else:
            assert train(*common, "hydra.run.dir=cut").code == 130
    assert load_checkpoint(Path("cut"))["step"] == step // 5 * 5 if act is kill else step
    outcome = train("resume=cut")
    assert outcome.code == 0, outcome.err
    assert_same_run("cut", "whole")


def test_resumed_twice(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("optimizer=adam", "epochs=3")
    assert train(*common, "hydra.run.dir=whole").code == 0
    for arguments, step in (((*common, "hydra.run.dir=cut"), 7), (("resume=cut",), 40)):
        with monkeypatch.context() as patch:
            at_step(patch, step, interrupt)
            assert train(*arguments).code == 130
    assert train("resume=cut").code == 0
    assert_same_run("cut", "whole")


@pytest.mark.parametrize("act", [interrupt, terminate])
def test_an_interruption_says_how_to_go_on(
    train: Train, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 4, act)
        outcome = train("epochs=2", "hydra.run.dir=cut")
    assert outcome.code == 130
    assert outcome.err.strip() == f"interrupted; go on with resume={Path('cut').resolve()}"
    assert read_json(Path("cut/status.json")) == {"status": "interrupted"}
    assert load_checkpoint(Path("cut"))["step"] == 4
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_tensorboard_shows_every_step_once(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        at_step(patch, 33, kill)
        with pytest.raises(Killed):
            train("epochs=3", "log_every=1", "checkpoint_every=10", "hydra.run.dir=cut")
    assert train("resume=cut").code == 0
    events = EventAccumulator("cut").Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 55))
    assert [event.step for event in events.Scalars("val/loss")] == [18, 36, 54]


def test_a_finished_run_goes_on_with_more_epochs(train: Train) -> None:
    assert train("epochs=3", "hydra.run.dir=whole").code == 0
    assert train("epochs=2", "hydra.run.dir=longer").code == 0
    assert train("resume=longer", "epochs=3").code == 0
    assert_same_run("longer", "whole")
    assert train("resume=longer").code == 0  # nothing is left to do
    assert_same_run("longer", "whole")


@pytest.mark.parametrize("scheduler", ["cosine", "exponential"])
def test_a_changed_schedule_holds_as_if_it_had_been_given_from_the_start(train: Train, scheduler: str) -> None:
    assert train(f"scheduler={scheduler}", "optimizer=adam", "max_steps=20", "hydra.run.dir=run").code == 0
    more = ("max_steps=30", "optimization.learning_rate=0.25")
    assert train("resume=run", *more).code == 0
    assert train(f"scheduler={scheduler}", "optimizer=adam", *more, "hydra.run.dir=other").code == 0
    rates = [read_table(Path(name, "metrics.csv"))[-1]["learning_rate"] for name in ("run", "other")]
    assert rates[0] == rates[1]
    state, other = (load_checkpoint(Path(name)) for name in ("run", "other"))
    assert_same(state["scheduler"], other["scheduler"])
    assert_same(state["optimizer"]["param_groups"], other["optimizer"]["param_groups"])
    assert not torch.equal(state["optimizer"]["state"][0]["exp_avg"], other["optimizer"]["state"][0]["exp_avg"])


def test_differences_that_were_not_asked_for_are_told(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("max_steps=2", "hydra.run.dir=run").code == 0
    recorded = Path("run/.hydra/config.yaml")
    recorded.write_text(recorded.read_text().replace("batch_size: 64", "batch_size: 32"))
    outcome = train("resume=run", "max_steps=4")
    assert outcome.code == 0
    told = [line.partition(" - resume: ")[2] for line in outcome.out.splitlines() if "WARNING" in line]
    assert told == ["dataset.batch_size is 64, was 32 in the run that is resumed"]


REFUSED = [
    ("model=mlp_small", "the checkpoint is of another model: '1.weight' has shape (10, 64) in the checkpoint"),
    ("optimization=backprop", "the checkpoint is of another method: ForwardGradient, not Backprop"),
    ("optimization=local", "the checkpoint is of another model"),
    ("optimizer=adam", "the checkpoint is of another optimizer: SGD, not Adam"),
    ("device=foo", "device must be one of"),
    ("optimizaton=1", "there is no key 'optimizaton'; did you mean optimization?"),
    ("--multirun", "resume= continues one run; leave out --multirun"),
]


@pytest.mark.parametrize(("override", "expected"), REFUSED, ids=[override for override, _ in REFUSED])
def test_a_run_that_cannot_go_on_is_left_as_it_was(train: Train, override: str, expected: str) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.suffix != ".log"}

    assert train("max_steps=2", "hydra.run.dir=run").code == 0
    before = contents()
    outcome = train("resume=run", override)
    assert expected in outcome.error_line()
    assert outcome.code == 2
    assert contents() == before
    assert train("resume=run", "max_steps=3").code == 0


def test_a_damaged_checkpoint_is_noticed(train: Train) -> None:
    assert train("max_steps=20", "hydra.run.dir=run").code == 0
    older, newest = sorted(Path("run/checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    outcome = train("resume=run")
    assert f"{newest} is damaged" in outcome.error_line()
    assert "delete it to resume from the one before it" in outcome.error_line()
    assert outcome.code == 2
    newest.unlink()
    assert train("resume=run").code == 0
    assert older.is_file()


def test_a_run_without_a_checkpoint(train: Train) -> None:
    assert train("max_steps=2", "hydra.run.dir=run").code == 0
    for path in Path("run/checkpoints").iterdir():
        path.unlink()
    outcome = train("resume=run")
    assert "no checkpoint in run/checkpoints; name a run folder that has saved one" in outcome.error_line()
    assert outcome.code == 2
