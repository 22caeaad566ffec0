"""``scripts/global_optim.py`` as a user runs it, and every configuration file that it offers."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Outcome, close_logs, read_json, read_table
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fwdgrad import global_optimization as optim
from fwdgrad.cli import CONFIGS, register_schema
from fwdgrad.objectives import OBJECTIVES

SCRIPT = Path(__file__).parent.parent / "scripts" / "global_optim.py"
FUNCTIONS = sorted(path.stem for path in (CONFIGS / "function").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("global_optim_*.yaml"))

Script = Callable[..., Outcome]


@pytest.fixture
def script(monkeypatch, capsys, tmp_path) -> Script:
    """Give the command, to be run within this process in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        finally:
            close_logs()
        return Outcome(code, *capsys.readouterr())

    return run


def composed(*overrides: str) -> optim.GlobalOptimConfig:
    register_schema("global_optim_schema", optim.GlobalOptimConfig)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS.resolve()), version_base="1.3"):
        return OmegaConf.to_object(compose("global_optim", overrides=["name=test", *overrides]))


def test_a_run_from_a_shell_leaves_table_picture_figures_and_events(tmp_path):
    command = [sys.executable, str(SCRIPT), "function=beale", "iterations=6", "num_seeds=2", "target=5e-5"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "outputs").glob("*/*-global-beale")
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:3] for row in rows if row[:1] in (["forward_gradient"], ["backprop"])] == [
        ["forward_gradient", "2", "0"],
        ["backprop", "1", "0"],
    ]
    assert str(folder) in done.stdout.splitlines()[-1]
    assert (folder / "beale.png").read_bytes().startswith(b"\x89PNG")
    assert read_json(folder / "status.json") == {"status": "finished"}
    figures = read_json(folder / "metrics.json")
    assert (figures["function"], figures["backprop_iterations"], figures["target"]) == ("beale", 6, 5e-5)
    for subfolder in ("forward_gradient/seed_0", "forward_gradient/seed_1", "backprop"):
        curve = EventAccumulator(str(folder / subfolder)).Reload().Scalars("beale/f")
        assert [event.step for event in curve] == list(range(7))
    assert curve[-1].value == pytest.approx(figures["backprop_final_value"])


def test_a_function_of_ones_own_in_the_current_folder(script, tmp_path):
    (tmp_path / "mine.py").write_text("def bowl(x):\n    return ((x - 1) ** 2).sum()\n")
    done = script("function=custom", "function.path=mine.bowl", "function.start=[0,2,3]", "iterations=3")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("bowl, dimension 3, from (0, 2, 3); minimum not known")
    assert list(tmp_path.glob("outputs/*/*-global-custom/bowl.png"))


def test_a_sweep_gathers_the_figures_of_its_jobs(script, tmp_path):
    done = script("-m", "function=sphere,himmelblau", "learning_rate=1e-3,9", "iterations=4", "num_seeds=1")
    assert done.code == 0, done.err
    (table,) = tmp_path.glob("outputs/multirun/*/*/results.csv")
    rows = read_table(table)
    assert [(row["function"], row["learning_rate"], row["status"]) for row in rows] == [
        ("sphere", "0.001", "finished"),
        ("sphere", "9.0", "finished"),
        ("himmelblau", "0.001", "finished"),
        ("himmelblau", "9.0", "finished"),
    ]
    assert float(rows[0]["backprop_final_value"]) == pytest.approx(5 * 0.998**8)
    assert rows[3]["backprop_diverged"] == "1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("function=beal", "function=beal does not exist; choose one of ackley, beale,"),
        ("experiment=global_optim_beal", "did you mean global_optim_beale"),
        ("iteration=3", "there is no key 'iteration'; did you mean iterations"),
        ("iterations=three", "iterations=three: Value 'three' of type 'str' could not be converted to Integer"),
        ("iterations=0", "iterations must be at least 1, got 0"),
        ("function.dim=3", "beale needs dimension 2, got 3"),
        ("function=custom", "function.path must read module.function"),
        ("function.path=nowhere.bowl", "function.path=nowhere.bowl cannot be imported: No module named 'nowhere'"),
        ("direction=norml", "direction must be one of"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(override, message, script):
    done = script(override)
    assert done.code == 2
    assert message in done.error_line()


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "custom"])
def test_every_shipped_function_descends_with_its_settings(name):
    config = composed(f"function={name}")
    optim.check_config(config)
    problem = optim.make_problem(config.function)
    assert problem.objective.name == name
    config.iterations, config.num_seeds = min(config.iterations, 50), 2
    for descent in optim.compare(problem, config):
        assert not descent.diverged
        assert descent.values[-1] < descent.values[0]


def test_every_test_function_has_its_file():
    assert {*OBJECTIVES, "custom"} == set(FUNCTIONS)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("global_optim_beale", ("beale", 0.01, 1000, 5e-5, 5)),
        ("global_optim_rosenbrock", ("rosenbrock", 5e-4, 25_000, 5e-6, 5)),
    ],
)
def test_the_recorded_settings_are_those_of_the_paper(name, settings):
    config = composed(f"experiment={name}")
    problem = optim.make_problem(config.function)
    assert (
        problem.objective.name,
        config.learning_rate,
        config.iterations,
        config.target,
        config.num_seeds,
    ) == settings
    assert (config.direction, config.num_directions) == ("normal", 1)


def test_no_recorded_settings_are_forgotten():
    assert EXPERIMENTS == ["global_optim_beale", "global_optim_rosenbrock"]


def test_a_command_line_value_wins_over_the_file_of_the_function():
    config = composed("function=rosenbrock", "iterations=7", "function.dim=4", "learning_rate=1e-5")
    assert (config.iterations, config.function.dim, config.learning_rate) == (7, 4, 1e-5)
