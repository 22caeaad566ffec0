"""What cannot be done is told in one line on the standard error, with the nearest valid names and an exit code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import Train, read_json, run_folders, train

import fwdgrad
from fwdgrad.training import load_checkpoint

__all__ = ["train"]  # a fixture

DIRECTIONS = "['normal', 'rademacher', 'sphere', 'sparse', 'coordinate', 'orthogonal', 'low_rank', 'per_example']"

USAGE = [
    # keys
    ("optimizaton.learning_rate=1", "no key 'optimizaton.learning_rate'; did you mean optimization.learning_rate?"),
    ("learning_rate=1", "there is no key 'learning_rate'; did you mean optimization.learning_rate?"),
    ("num_directions=4", "there is no key 'num_directions'; did you mean optimization.num_directions?"),
    ("batch_size=4", "there is no key 'batch_size'; did you mean dataset.batch_size?"),
    ("epoch=4", "there is no key 'epoch'; did you mean epochs?"),
    ("model.hidden=[3]", "there is no key 'model.hidden'; model has _target_, input_shape, num_classes"),
    # types
    ("epochs=abc", "epochs=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    ("dataset.batch_size=abc", "dataset.batch_size=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    ("compile=maybe", "compile=maybe: Value 'maybe' is not a valid bool"),
    ("optimization.learning_rate=abc", "optimization.learning_rate must be a positive number, or auto, got 'abc'"),
    ("scheduler.rate=abc", "scheduler: rate must be a number that is not negative, got 'abc'"),
    # choices
    ("model=cov", "model=cov does not exist; choose one of conv, "),
    ("model=cov", "; did you mean conv?"),
    ("optimization=fwdgard", "; did you mean fwdgrad?"),
    ("dataset=minst", "; did you mean mnist or kmnist?"),
    ("scheduler=cosin", "; did you mean cosine?"),
    ("hydra/launcher=basci", "; did you mean basic?"),
    (
        "device=cdua",
        "device must be one of ['auto', 'cpu', 'cuda', 'mps'] or cuda:<index>, got 'cdua'; did you mean 'cuda'?",
    ),
    ("precision=half", "precision must be one of ['float32', 'bfloat16'], got 'half'"),
    ("engine=foo", "engine must be one of ['func', 'dual', 'finite_difference'], got 'foo'"),
    ("optimization.direction=nromal", f"direction must be one of {DIRECTIONS}, got 'nromal'. Did you mean 'normal'?"),
    ("model=resnet18 model.name=resnet19", "got 'resnet19'; did you mean 'resnet18'?"),
    # values
    ("optimization.num_directions=0", "num_directions must be a positive integer, got 0"),
    ("optimization.learning_rate=-1", "optimization.learning_rate must be a positive number, or auto, got -1"),
    ("optimization.learning_rate=null", "optimization.learning_rate must be a positive number, or auto, got None"),
    ("optimization.clip_norm=0", "optimization.clip_norm must be a positive number, got 0"),
    ("dataset.batch_size=0", "dataset.batch_size must be at least 1, got 0"),
    ("log_every=0", "log_every must be at least 1, got 0"),
    ("epochs=null", "epochs or max_steps must be set, both are null"),
    ("dataset.validation_size=5000", "dataset: validation_size must be between 0 and 1296 for dataset 'digits'"),
    ("dataset.num_classes=7", "dataset: num_classes is 10 in digits, but 7 is configured"),
    ("+optimizer.foo=3", "optimizer: SGD.__init__() got an unexpected keyword argument 'foo'"),
    # models
    ("model._target_=nowhere.Model", "model: Error loading 'nowhere.Model': ModuleNotFoundError(\"No module named"),
    ("model._target_=torch.nn.Foo", "model: Error loading 'torch.nn.Foo'"),
    ("model._target_=own_models.frozen_net", "no parameter with requires_grad=True, so there is nothing to train"),
    ("model._target_=own_models.no_module", "model: _target_ must build a torch.nn.Module, got int"),
    ("model._target_=own_models.Refuses", "model: Refuses does not take (2, 1, 8, 8) inputs: no such layer"),
    ("model.input_shape=[1,2,2]", "model: Sequential does not take (2, 1, 8, 8) inputs: "),
    ("model.num_classes=7", "must map (2, 1, 8, 8) inputs to (2, 10) logits for dataset=digits, got (2, 7)"),
    (
        "optimization=local model._target_=own_models.Wrapped",
        "model: local losses need a network in blocks, got Wrapped: only an nn.Sequential that ends in an nn.Linear",
    ),
    ("optimization=local optimization.prepare=nowhere.cut", "model: Error loading 'nowhere.cut'"),
    # combinations
    ("compile=true engine=dual", "compile=True needs engine='func', got engine='dual'"),
    ("engine=dual optimization=backprop", "engine must be one of ('autograd', 'tape'), got 'dual'"),
    ("engine=dual optimization=activity", "engine=dual has no meaning for ActivityPerturbation; leave engine out"),
    ("engine=tape optimization=backprop compile=true", "engine='tape' cannot be compiled; use engine='autograd'"),
    ("engine=tape", "engine must be one of"),
    # data
    ("dataset=kmnist dataset.root=nowhere dataset.download=false", "dataset 'kmnist' is not in "),
    ("dataset=kmnist dataset.root=nowhere dataset.download=false", "or use dataset=digits"),
    # syntax
    ("foo", "cannot read 'foo': missing EQUAL at '<EOF>'; settings are given as KEY=VALUE"),
    ("=3", "cannot read '=3': the key is missing"),
    ("optimization.learning_rate=[1", "cannot read 'optimization.learning_rate=[1': "),
    ("--foo", "there is no option '--foo'; settings are given as KEY=VALUE, such as foo=..."),
    ("dataset=digits,mnist", "To sweep over it, add --multirun to your command line"),
    # resume
    ("resume=nowhere", "resume=nowhere is not a run folder: it has no .hydra/overrides.yaml"),
]


@pytest.mark.parametrize(("line", "expected"), USAGE, ids=[line for line, _ in USAGE])
def test_a_usage_error_is_one_line_and_exit_code_2(train: Train, line: str, expected: str) -> None:
    outcome = train(*line.split())
    assert expected in outcome.error_line()
    assert outcome.code == 2


IN_A_SWEEP = ["optimizaton.learning_rate=1,2", "epochs=abc,1", "dataset=digits,minst", "model=cov,mlp", "--foo", "foo"]


@pytest.mark.parametrize("line", IN_A_SWEEP)
def test_a_sweep_that_cannot_be_composed_runs_nothing(train: Train, line: str) -> None:
    outcome = train("--multirun", line, "max_steps=1")
    assert outcome.error_line()
    assert outcome.code == 2
    assert not list(Path().glob("outputs/multirun/*/*/*/status.json"))


def test_a_gpu_that_is_not_there(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = train("device=cuda")
    assert "device=cuda is not available on this machine; use device=auto or device=cpu" in outcome.error_line()
    assert outcome.code == 2


@pytest.mark.parametrize("name", ["optuna", "joblib"])
def test_a_missing_plugin_is_named_with_its_extra(train: Train, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # Hydra finds plugins by listing the modules of the package hydra_plugins.
    from hydra._internal.config_repository import ConfigRepository

    real = ConfigRepository.load_config

    def without_plugins(self: ConfigRepository, config_path: str) -> object:
        return None if config_path.endswith(f"/{name}") and "hydra/" in config_path else real(self, config_path)

    monkeypatch.setattr(ConfigRepository, "load_config", without_plugins)
    line, extra = {
        "optuna": ("hparams_search=optuna", "optuna"),
        "joblib": ("hydra/launcher=joblib", "launchers"),
    }[name]
    outcome = train("--multirun", line, "max_steps=1")
    assert outcome.error_line().endswith(
        f"={name} needs a package that is not installed: pip install 'fwdgrad[{extra}]'"
    )
    assert outcome.code == 2


def test_a_damaged_dataset_file(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "KMNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"not what it should be")
    outcome = train("dataset=kmnist", f"dataset.root={tmp_path}", "dataset.download=false")
    assert "train-images-idx3-ubyte is damaged" in outcome.error_line()
    assert outcome.code == 2


def test_a_run_folder_that_cannot_be_made(train: Train) -> None:
    Path("taken").write_text("a file")
    outcome = train("hydra.run.dir=taken/here", "max_steps=1")
    assert "taken/here: Not a directory; choose another folder with hydra.run.dir=FOLDER" in outcome.error_line()
    assert outcome.code == 1


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(train: Train) -> None:
    line = "model=mlp_small optimization.learning_rate=1e6 checkpoint_every=1 max_steps=50"
    outcome = train(*line.split())
    assert outcome.code == 1
    found = re.match(r"the loss is (nan|inf) at step (\d+); lower optimization.learning_rate", outcome.error_line())
    assert found is not None, outcome.err
    step = int(found[2])
    (folder,) = run_folders()
    status = read_json(folder / "status.json")
    assert status["status"] == "failed"
    assert status["reason"].startswith(f"NonFiniteLossError: the loss is {found[1]} at step {step};")
    assert "NonFiniteLossError" in (folder / "traceback.txt").read_text()
    kept = sorted((folder / "checkpoints").iterdir())[-1]
    assert str(kept) in outcome.err and kept.name.startswith(f"step-{step - 1:09d}.")
    assert all(torch.isfinite(value).all() for value in load_checkpoint(kept)["model"].values())


def test_a_new_run_does_not_write_over_an_old_one(train: Train) -> None:
    assert train("hydra.run.dir=mine", "max_steps=2").code == 0
    outcome = train("hydra.run.dir=mine", "max_steps=2")
    assert "mine holds a run already; go on with it by resume=" in outcome.error_line()
    assert outcome.code == 2


def test_full_errors_on_demand_and_no_trace_in_the_environment(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("epochs=abc").code == 2
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Error merging override epochs=abc"):
        train("epochs=abc")


@pytest.mark.parametrize(("overrides", "code"), [("max_steps=1", 0), ("model=cov", 2)])
def test_the_process_ends_with_the_exit_code(tmp_path: Path, overrides: str, code: int) -> None:
    script = Path(fwdgrad.__file__).parent.parent / "train.py"
    command = [sys.executable, str(script), *overrides.split()]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code
    assert len(ended.stderr.splitlines()) == (code != 0), ended.stderr
