"""Sweeps: a table of all jobs, failures that stay in their folders, every launcher and sweeper that is installed."""

from pathlib import Path

import pytest
from command import Train, read_json, read_table, sweep_folders, train

__all__ = ["train"]  # a fixture

# Launchers and sweepers are other people's: where their warnings are ignored, they are theirs.

# The first of the two learning rates leaves the range of float32 at once.
ONE_FAILS = ("optimization.learning_rate=1e38,1e-4", "max_steps=4")


def assert_one_failed(code: int, err: str, sweep: Path) -> None:
    assert code == 1
    error = err.strip().splitlines()[-1]
    assert error.startswith("error: 1 of 2 jobs failed: job 0 (optimization.learning_rate=1e+38 max_steps=4): ")
    assert "NonFiniteLossError: the loss is " in error and str(sweep) in error
    assert "Traceback" not in err
    failed, finished = sweep / "0", sweep / "1"
    assert read_json(failed / "status.json")["status"] == "failed"
    assert "NonFiniteLossError" in (failed / "traceback.txt").read_text()
    assert not (failed / "metrics.json").exists()
    assert read_json(finished / "status.json") == {"status": "finished"}
    assert not (finished / "traceback.txt").exists()
    first, second = read_table(sweep / "results.csv")
    assert (first["job"], first["status"], first["test_accuracy"]) == ("0", "failed", "")
    assert first["reason"].startswith("NonFiniteLossError")
    assert (second["job"], second["status"], second["steps"], second["reason"]) == ("1", "finished", "4", "")


def test_a_sweep_leaves_a_table_of_its_jobs(train: Train) -> None:
    outcome = train("-m", "optimization=fwdgrad,backprop", "seed=0,1,2", "max_steps=2")
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    (sweep,) = sweep_folders()
    rows = read_table(sweep / "results.csv")
    assert [row["job"] for row in rows] == ["0", "1", "2", "3", "4", "5"]
    assert [row["optimization"] for row in rows] == ["fwdgrad"] * 3 + ["backprop"] * 3
    assert [row["seed"] for row in rows] == ["0", "1", "2"] * 2
    assert {row["status"] for row in rows} == {"finished"}
    for row in rows:
        figures = read_json(sweep / row["job"] / "metrics.json")
        assert {key: str(value) for key, value in figures.items()} == {key: row[key] for key in figures}
        assert list((sweep / row["job"]).glob("events.out.tfevents.*"))
    assert len({row["test_loss"] for row in rows}) == 6


def test_runs_are_a_function_of_configuration_and_seed(train: Train) -> None:
    train("-m", "seed=0,1", "max_steps=3")
    train("-m", "seed=1,0", "max_steps=3")
    tables = [read_table(folder / "results.csv") for folder in sweep_folders()]
    losses = [{row["seed"]: row["test_loss"] for row in table} for table in tables]
    assert losses[0] == losses[1]
    assert losses[0]["0"] != losses[0]["1"]


def test_a_job_that_fails_does_not_end_the_sweep(train: Train) -> None:
    outcome = train("--multirun", *ONE_FAILS)
    (sweep,) = sweep_folders()
    assert_one_failed(outcome.code, outcome.err, sweep)
    outcome.error_line()


def test_a_usage_error_in_one_job_does_not_end_the_sweep(train: Train) -> None:
    outcome = train("-m", "device=foo,cpu,bar", "max_steps=1")
    assert outcome.code == 1
    assert outcome.error_line().startswith(
        "2 of 3 jobs failed: job 0 (device=foo max_steps=1): ConfigError: device must "
    )
    (sweep,) = sweep_folders()
    assert [row["status"] for row in read_table(sweep / "results.csv")] == ["failed", "finished", "failed"]


def test_a_job_of_a_sweep_can_be_resumed(train: Train) -> None:
    assert train("-m", "seed=0,1", "max_steps=2").code == 0
    (sweep,) = sweep_folders()
    outcome = train(f"resume={sweep / '1'}", "max_steps=5")
    assert outcome.code == 0, outcome.err
    assert [row["steps"] for row in read_table(sweep / "results.csv")] == ["2", "5"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "module"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher"),
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher"),
        ("ray", "hydra_plugins.hydra_ray_launcher"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_launchers(train: Train, launcher: str, module: str) -> None:
    pytest.importorskip(module)
    outcome = train("-m", f"hydra/launcher={launcher}", *ONE_FAILS)
    (sweep,) = sweep_folders()
    assert_one_failed(outcome.code, outcome.err, sweep)


@pytest.mark.filterwarnings("ignore")
def test_optuna_maximises_the_validation_accuracy(train: Train) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    outcome = train("-m", "hparams_search=optuna", "hydra.sweeper.n_trials=3", "max_steps=30")
    assert outcome.code == 0, outcome.err
    (sweep,) = sweep_folders()
    rows = read_table(sweep / "results.csv")
    assert len(rows) == 3
    text = (sweep / "optimization_results.yaml").read_text()
    best = float(text.partition("best_value:")[2].split()[0])
    assert best == max(float(row["val_accuracy"]) for row in rows)
    # A trial can be resumed on its own.
    assert train(f"resume={sweep / '0'}", "max_steps=31").code == 0


@pytest.mark.filterwarnings("ignore")
def test_optuna_survives_trials_that_fail(train: Train) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    outcome = train(
        *("-m", "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.direction=maximize"),
        *("hydra.sweeper.n_jobs=1", "seed=choice(0,1)", "optimization.learning_rate=choice(1e38,1e-4)", "max_steps=4"),
    )
    assert sweep_folders(), outcome.err
    (sweep,) = sweep_folders()
    statuses = [row["status"] for row in read_table(sweep / "results.csv")]
    assert sorted(statuses) == ["failed", "failed", "finished", "finished"]
    assert outcome.code == 1
    assert outcome.err.strip().splitlines()[-1].startswith("error: 2 of 4 jobs failed: ")


@pytest.mark.filterwarnings("ignore")
def test_optuna_where_all_trials_fail(train: Train) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    outcome = train("-m", "hparams_search=optuna", "hydra.sweeper.n_trials=2", "device=foo")
    assert outcome.code == 1
    assert outcome.err.strip().splitlines()[-1].startswith("error: 2 of 2 jobs failed: job 0 ")
