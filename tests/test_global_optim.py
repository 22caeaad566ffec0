"""Descents on functions of a few variables: what they do, what is reported of them."""

import json
import math
import types

import pytest
import torch

from fwdgrad import forward_gradient, objectives
from fwdgrad import global_optimization as optim
from fwdgrad.global_optimization.problem import check_objective, load_objective


def settings(**changes) -> optim.GlobalOptimConfig:
    return optim.GlobalOptimConfig(**{"learning_rate": 0.01, "iterations": 12, "num_seeds": 3, **changes})


def problem(name="beale", **changes) -> optim.Problem:
    return optim.make_problem(optim.FunctionConfig(f"fwdgrad.objectives.{name}", **changes))


def by_hand(function, start, learning_rate, iterations, gradient_at) -> list[float]:
    x, values = start.clone(), []
    for i in range(iterations):
        values.append(function(x).item())
        x = x - learning_rate * gradient_at(x, i)
    return [*values, function(x).item()]


def test_backprop_is_gradient_descent():
    sphere = problem("sphere", dim=3)
    run = optim.compare(sphere, settings(learning_rate=0.1))[-1]
    assert (run.method, run.seed, run.iterations) == ("backprop", None, 12)
    torch.testing.assert_close(run.values, sphere.objective(sphere.start) * 0.8 ** (2 * torch.arange(13)).double())
    torch.testing.assert_close(run.final, 0.8**12 * sphere.start)


@pytest.mark.parametrize("engine", ["func", "dual"])
def test_forward_gradient_takes_the_estimates_of_the_pure_form(engine):
    beale = problem()

    def estimate(x, step):
        return forward_gradient(lambda params: beale.objective(params["x"]), {"x": x}, seed=5, step=step).gradient["x"]

    run = optim.compare(beale, settings(seed=4, num_seeds=2, engine=engine))[1]
    assert (run.method, run.seed) == ("forward_gradient", 5)
    expected = by_hand(beale.objective, beale.start, 0.01, 12, estimate)
    torch.testing.assert_close(run.values, torch.tensor(expected, dtype=torch.float64))


def test_runs_depend_on_the_seed_alone():
    first, second = (optim.compare(problem(), settings()) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.values, other.values)
    assert not torch.equal(first[0].values, first[1].values)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    optim.compare(problem(), settings())
    assert torch.equal(torch.get_rng_state(), before)


def test_more_directions_come_closer_to_the_exact_descent():
    def deviation(num_directions):
        *random, exact = optim.compare(problem(), settings(num_directions=num_directions, num_seeds=5))
        return torch.stack([(run.values - exact.values).abs() for run in random]).mean()

    # The deviation of a mean of K directions falls as 1/sqrt(K): by 8 from 1 to 64. Half of that is asked for.
    assert deviation(64) < deviation(1) / 4


def test_the_record_has_one_entry_for_the_start_and_each_iteration():
    calls = []
    runs = optim.compare(problem(), settings(iterations=7), calls.append)
    assert sum(calls) == 7 * len(runs)
    for run in runs:
        assert run.values.shape == run.seconds.shape == (8,)
        assert run.path.shape == (8, 2)
        assert torch.equal(run.path[0], problem().start)
        assert run.seconds[0] == 0
        assert (run.seconds.diff() > 0).all()
    assert optim.compare(problem("sphere", dim=3), settings())[0].path is None


def test_a_descent_that_diverges_ends_with_its_last_finite_value():
    beale = problem()
    runs = optim.compare(beale, settings(learning_rate=5.0, target=1.0))
    for run in runs:
        assert run.diverged
        assert run.iterations < 12
        assert run.values.isfinite().all()
    summaries = optim.summarize(beale, runs, target=1.0)
    assert [(s.runs, s.diverged, s.final_value, s.distance, s.reached) for s in summaries] == [
        (3, 3, None, None, 0),
        (1, 1, None, None, 0),
    ]
    assert "diverged" in optim.table(beale, settings(learning_rate=5.0, target=1.0), summaries).splitlines()[-1]


def run_ending_at(value: float, diverged: bool = False, dim: int = 2) -> optim.Run:
    values = torch.tensor([9.0, value], dtype=torch.float64)
    seconds = torch.tensor([0.0, 0.5], dtype=torch.float64)
    final = torch.tensor([math.sqrt(value), *[0.0] * (dim - 1)], dtype=torch.float64)
    return optim.Run("forward_gradient", 0, values, seconds, None, final, diverged)


def test_a_summary_is_the_median_with_divergence_as_infinity():
    runs = [run_ending_at(1.0, diverged=True), run_ending_at(4.0), run_ending_at(0.25)]
    (summary,) = optim.summarize(problem("sphere"), runs, target=0.25)
    assert summary.final_value == 4.0
    assert summary.distance == 2.0
    assert (summary.best, summary.worst) == (0.25, None)
    assert (summary.diverged, summary.reached) == (1, 1)
    assert summary.seconds_per_iteration == 0.5


def test_distance_is_that_to_the_nearest_minimizer():
    himmelblau = problem("himmelblau")
    assert himmelblau.distance(torch.tensor([-2.805118086952745, 3.131312518250573 + 0.25]).double()) == pytest.approx(
        0.25
    )


def test_the_table_names_the_start_and_the_minimum():
    config = settings(target=1e-3)
    sphere = problem("sphere", dim=6)
    lines = optim.table(sphere, config, optim.summarize(sphere, [run_ending_at(0.25, dim=6)], 1e-3)).splitlines()
    assert lines[0] == "sphere, dimension 6, from (2, -1, 2, -1, ...); minimum 0 at (0, 0, 0, 0, ...)"
    assert lines[3].split("  ")[-1] == "f <= 0.001"
    assert lines[4].split()[-3:] == ["0", "of", "1"]
    assert "0.25" in lines[4].split()


def test_figures_are_plain_json():
    beale, config = problem(), settings(learning_rate=5.0)
    figures = optim.metrics(beale, config, optim.summarize(beale, optim.compare(beale, config), None))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["forward_gradient_diverged"] == 3
    assert figures["backprop_final_value"] is None


class Recorder:
    def __init__(self):
        self.seen, self.closed = [], False

    def add_scalar(self, tag, scalar_value, global_step):
        self.seen.append((tag, global_step, scalar_value))

    def close(self):
        self.closed = True


def test_curves_of_all_runs_share_one_tag(monkeypatch):
    monkeypatch.setattr("fwdgrad.global_optimization.report.POINTS_PER_CURVE", 5)
    writers = {}
    runs = optim.compare(problem(), settings(num_seeds=2, iterations=13))
    optim.log_curves("beale", runs, lambda name: writers.setdefault(name, Recorder()))
    assert list(writers) == ["forward_gradient/seed_0", "forward_gradient/seed_1", "backprop"]
    for run, writer in zip(runs, writers.values(), strict=True):
        assert writer.closed
        assert writer.seen == [("beale/f", i, run.values[i].item()) for i in (0, 3, 6, 9, 12, 13)]


def step(x):
    """Flat where the run is, with a derivative of zero."""
    return torch.relu(x - 9).sum()


def concave_and_odd(x):
    """Takes both signs, is nan beyond a circle, takes no batches, and has a branch on a value."""
    if x[0] > 0.9:
        return torch.log(1 - x @ x) + 1
    return torch.log(1 - x @ x) + x[1]


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (problem, {}),
        (problem, {"target": 1e-2}),
        (problem, {"learning_rate": 5.0}),
        (lambda: problem(start=[2.0, 1.5]), {"learning_rate": 0.05, "iterations": 100}),
        (lambda: problem("himmelblau"), {}),
        (lambda: problem("styblinski_tang"), {"learning_rate": 1e-3, "target": -78.0}),
        (lambda: problem("sphere", dim=1), {}),
        (lambda: problem("rosenbrock", dim=30), {"learning_rate": 1e-4}),
        (
            lambda: optim.Problem(
                objectives.Objective(concave_and_odd, "odd"), torch.tensor([0.1, 0.2], dtype=torch.float64)
            ),
            {"target": 0.0},
        ),
        (lambda: optim.Problem(objectives.Objective(step, "step"), torch.zeros(2, dtype=torch.float64)), {}),
    ],
    ids=[
        "plane",
        "target",
        "diverging",
        "slowly-diverging",
        "four-minima",
        "below-zero",
        "line",
        "many",
        "unknown-minimum",
        "flat",
    ],
)
def test_every_kind_of_run_has_a_picture(make, changes, tmp_path):
    shown, config = make(), settings(**changes)
    optim.draw(shown, config, optim.compare(shown, config), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_starts_are_patterns():
    assert problem("rosenbrock").start.tolist() == [-1.2, 1.0]
    assert problem("rosenbrock", dim=5).start.tolist() == [-1.2, 1.0, -1.2, 1.0, -1.2]
    assert problem("sphere", start=[1.0, 2.0, 3.0]).start.tolist() == [1.0, 2.0, 3.0]
    assert problem("sphere", start=[7.0], dim=3).start.tolist() == [7.0, 7.0, 7.0]
    assert problem("sphere", dim=1).start.tolist() == [2.0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": ""}, "function.path must read module.function, such as fwdgrad.objectives.beale; got ''"),
        ({"path": "beale"}, "function.path must read module.function"),
        ({"path": "fwdgrad.objectives.baele"}, "fwdgrad.objectives.baele cannot be imported: .* no attribute 'baele'"),
        ({"path": "no_such.module"}, "no_such.module cannot be imported: No module named 'no_such'"),
        ({"path": "math.pi"}, "function.path=math.pi must be a function, got float"),
        ({"path": "torch.sin"}, r"function.start must be given for sin, for instance function.start=\[0.5,-1\]"),
        ({"path": "torch.sin", "start": [1, 2]}, r"sin must return a scalar for a point of shape \(2,\), got shape"),
        ({"path": "fwdgrad.objectives.beale", "dim": 3}, "beale needs dimension 2, got 3"),
        ({"path": "fwdgrad.objectives.sphere", "dim": 0}, "function.dim must be at least 1, got 0"),
        ({"path": "fwdgrad.objectives.beale", "start": []}, "function.start must be given"),
        (
            {"path": "fwdgrad.objectives.sphere", "start": [1, 2, 3], "dim": 2},
            "function.start has 3 entries, more than function.dim=2",
        ),
        (
            {"path": "fwdgrad.objectives.sphere", "start": [1e200]},
            r"sphere must be finite at the start \(1e\+200\), got inf; choose another function.start",
        ),
    ],
)
def test_what_cannot_be_minimised_is_refused(config, message):
    with pytest.raises((ValueError, TypeError, ImportError), match=message):
        optim.make_problem(optim.FunctionConfig(**config))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 3.0, "must return a floating-point tensor, got float"),
        (lambda x: x.sum() > 0, "must return a floating-point tensor, got torch.bool"),
        (lambda x: x.detach().sum(), r"own has no derivative at the start \(1, 1\)"),
        (lambda x: x[5], r"own fails at the start \(1, 1\): IndexError: index 5 is out of bounds"),
    ],
)
def test_a_function_that_cannot_be_differentiated_is_refused(function, message):
    with pytest.raises((ValueError, TypeError), match=message):
        check_objective(objectives.Objective(function, "own"), torch.ones(2))


def test_a_plain_function_is_taken_without_knowledge():
    known = load_objective("torch.sum")
    assert (known.name, known.minimizers, known.start) == ("sum", (), None)
    assert load_objective("fwdgrad.objectives.beale") is objectives.beale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"num_seeds": 0}, "num_seeds must be at least 1, got 0"),
        ({"num_directions": 0}, "num_directions must be a positive integer, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number, got -1.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"direction": "norml"}, "Did you mean 'normal'"),
        ({"direction": "per_example"}, "direction=per_example needs a batch"),
        ({"engine": "jvp"}, "engine must be one of"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        optim.check_config(settings(**changes))


def test_a_module_of_the_current_folder_can_be_imported(tmp_path, monkeypatch):
    (tmp_path / "own_functions_of_a_user.py").write_text("def bowl(x):\n    return (x * x).sum()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    found = load_objective("own_functions_of_a_user.bowl")
    assert isinstance(found.function, types.FunctionType)
