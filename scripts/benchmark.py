"""Time whole training steps (draw, derivative, update) of every method side by side, and measure their memory.

python scripts/benchmark.py                       the whole table
python scripts/benchmark.py --work mlp --batch-size 64 --json rows.json

Each method runs against backpropagation and inference alone, in a fresh process and in turns, A A A B B B C C C A A A
...: as in training, a step finds memory and caches as its own method left them, and a turn's first steps do not count.
Figures are medians over the turns, ratios are medians of the rounds' ratios. Peak memory is counted in bytes above what
exists before the step: the parameters and the batch. Backprop is given its better optimizer implementation (foreach or
fused) and, like the others, its better memory format.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fwdgrad
from fwdgrad import models
from fwdgrad.memory import peak_bytes
from fwdgrad.optim import FactoredSGD

IMAGE = (1, 28, 28)
WORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "logistic": (lambda: models.logistic(IMAGE, 10), (64,)),
    "mlp": (lambda: models.mlp(IMAGE, 10), (64, 256, 1024)),
    "conv": (lambda: models.conv(IMAGE, 10), (64,)),
    "deep20": (lambda: deep_mlp(layers=20, width=256), (256,)),
    "deep": (lambda: deep_mlp(layers=100, width=256), (256,)),
}


@dataclass(frozen=True)
class Method:
    """A way to do a step: ``direction`` None means backpropagation or, without a gradient, inference.

    For activity perturbation it says what is perturbed.
    """

    name: str
    engine: str | None = None
    direction: str | None = None
    num_directions: int = 0
    works: tuple[str, ...] = tuple(WORKS)


METHODS = (
    Method("inference"),
    Method("backprop"),
    Method("fwdgrad", "func", "normal", 1),
    Method("fwdgrad_fast", "dual", "low_rank", 1),
    Method("fwdgrad_fast", "dual", "low_rank", 8, ("logistic", "mlp")),
    Method("per_example", "dual", "per_example", 1, ("logistic", "mlp")),
    Method("activity", "dual", "activity", 16, ("mlp", "deep20")),  # directions times layers behind: no 100 layers
)


@dataclass
class Row:
    """One line of the table; times in seconds."""

    name: str
    batch_size: int
    method: str
    engine: str | None
    direction: str | None
    num_directions: int
    variant: str
    median_seconds: float
    ratio_to_backprop: float
    ratio_to_inference: float
    peak_bytes: int


def deep_mlp(layers: int, width: int) -> nn.Module:
    """Return ``layers`` linear layers of one width with ReLUs between them, behind a flattening input layer."""
    hidden = [nn.Linear(784, width), nn.ReLU()]
    for _ in range(layers - 2):
        hidden += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def make_step(method: Method, work: str, batch_size: int, device: torch.device, variant: str) -> Callable[[], object]:
    """Return a function that does one whole step of the method on a fixed batch."""
    torch.manual_seed(0)
    channels_last = variant.startswith("channels_last")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = WORKS[work][0]().to(device).to(memory_format=layout)
    inputs = torch.randn(batch_size, *IMAGE, device=device).contiguous(memory_format=layout)
    targets = torch.randint(0, 10, (batch_size,), device=device)
    reduction = "none" if method.direction in ("per_example", "activity") else "mean"

    def closure(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(inputs), targets, reduction=reduction)

    if method.name == "inference":
        return torch.inference_mode()(lambda: closure(model))
    # A learning rate of zero leaves the work as it is and keeps every step the same.
    optimizer: torch.optim.Optimizer
    estimator: fwdgrad.Estimator
    if method.name == "backprop":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=variant.endswith("fused"))
        estimator = fwdgrad.Backprop()
    elif method.name == "activity":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        estimator = fwdgrad.ActivityPerturbation(method.num_directions)
    else:
        assert method.direction is not None and method.engine is not None
        factored = method.engine == "dual"
        optimizer = (FactoredSGD if factored else torch.optim.SGD)(model.parameters(), lr=0.0)
        estimator = fwdgrad.ForwardGradient(method.direction, method.num_directions, method.engine, optimizer=optimizer)

    def step() -> None:
        optimizer.zero_grad()
        estimator(model, closure)
        optimizer.step()

    return step


def variants(method: Method, work: str) -> list[str]:
    """Return the settings among which the method may choose its best."""
    layouts = ["contiguous", "channels_last"] if work == "conv" else ["contiguous"]
    return [
        f"{layout}, fused" if fused else layout
        for layout in layouts
        for fused in range(1 + (method.name == "backprop"))
    ]


def measure(work: str, batch_size: int, method: Method, device: torch.device, seconds: float) -> list[Row]:
    """Run a method beside inference and backprop for some seconds; return a row for each of the three."""
    group = [*(rival for rival in METHODS if rival.direction is None), method]
    chosen = [best_variant(other, work, batch_size, device) for other in group]
    steps = [make_step(other, work, batch_size, device, name) for other, name in zip(group, chosen, strict=True)]
    rounds = run_in_turns(steps, device, seconds)
    return [
        make_row(work, batch_size, other, chosen[i], rounds, i, group, peak_bytes(steps[i], device))
        for i, other in enumerate(group)
    ]


def measure_afresh(work: str, batch_size: int, device: torch.device, seconds: float) -> list[Row]:
    """Measure every method of a work, each in a process of its own; the rivals' rows are those of the first."""
    rows: list[Row] = []
    for method in [method for method in METHODS if method.direction is not None and work in method.works]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            measured = process.submit(measure, work, batch_size, method, device, seconds).result()
        rows += measured if not rows else measured[-1:]
    return rows


def run_in_turns(steps: list[Callable[[], object]], device: torch.device, seconds: float) -> list[list[float]]:
    """Return the median seconds of each step in each round."""
    rounds: list[list[float]] = []
    deadline = time.perf_counter() + seconds
    while len(rounds) < 6 or (time.perf_counter() < deadline and len(rounds) < 500):
        rounds.append([turn(step, device) for step in steps])
    return rounds[1:]


def best_variant(method: Method, work: str, batch_size: int, device: torch.device) -> str:
    """Return the setting in which the method takes the least time."""
    names = variants(method, work)
    if len(names) == 1:
        return names[0]
    rounds = run_in_turns([make_step(method, work, batch_size, device, name) for name in names], device, 2.0)
    medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return names[medians.index(min(medians))]


def make_row(
    work: str,
    batch_size: int,
    method: Method,
    variant: str,
    rounds: list[list[float]],
    index: int,
    group: list[Method],
    peak: int,
) -> Row:
    """Return the row of the method at ``index`` in a group that ran in turns."""
    names = [other.name for other in group]

    def ratio(rival: str) -> float:
        return statistics.median(times[index] / times[names.index(rival)] for times in rounds)

    return Row(
        name=work,
        batch_size=batch_size,
        method=method.name,
        engine=method.engine,
        direction=method.direction,
        num_directions=method.num_directions,
        variant=variant,
        median_seconds=statistics.median(times[index] for times in rounds),
        ratio_to_backprop=ratio("backprop"),
        ratio_to_inference=ratio("inference"),
        peak_bytes=peak,
    )


def turn(step: Callable[[], object], device: torch.device, uncounted: int = 2, counted: int = 5) -> float:
    """Return the median seconds of some steps in a row, after some that bring the caches into their own state."""
    for _ in range(uncounted):
        step()
    return statistics.median(timed(step, device) for _ in range(counted))


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds one step takes."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to have done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """Describe where and with what the figures were taken."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return (
        f"{name}, {torch.get_num_threads()} threads, float32, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.system()}"
    )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=WORKS, nargs="+", default=list(WORKS))
    parser.add_argument("--batch-size", type=int, nargs="+", help="instead of the work's own batch sizes")
    parser.add_argument("--seconds", type=float, default=6.0, help="time for each method on each work and batch size")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(machine(device))
    heads = ("work", "B", "method", "engine", "direction", "K", "ms", "/backprop", "/inference", "peak MB", "setting")
    layout = "{:9} {:>5} {:13} {:6} {:12} {:>2} {:>8} {:>9} {:>10} {:>8}  {}"
    print(layout.format(*heads))
    rows = []
    for work in arguments.work:
        for batch_size in arguments.batch_size or WORKS[work][1]:
            for row in measure_afresh(work, batch_size, device, arguments.seconds):
                rows.append(row)
                figures = [f"{row.median_seconds * 1e3:.3f}", f"{row.ratio_to_backprop:.2f}"]
                figures += [f"{row.ratio_to_inference:.2f}", f"{row.peak_bytes / 2**20:.2f}"]
                words = (row.name, row.batch_size, row.method, row.engine or "-", row.direction or "-")
                print(layout.format(*words, row.num_directions or "-", *figures, row.variant))
                sys.stdout.flush()
    if arguments.json:
        with Path(arguments.json).open("w") as file:
            json.dump({"machine": machine(device), "rows": [asdict(row) for row in rows]}, file, indent=2)


if __name__ == "__main__":
    main()
