"""Imports go downward only, and third parties come in by their own doors; read from the source alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up; parts of one layer never import each other. A part is a module or package of fwdgrad with all that
# is in it; "fwdgrad" is the package's own __init__, and cli stands for cli.py and every cli_*.py.
LAYERS: list[set[str]] = [
    {"tangents", "tree", "randomness", "replay", "words", "memory"},
    {"dual"},
    {"directions", "engines", "functional", "optim", "models", "data", "objectives"},
    {"estimators"},
    {"fit", "diagnostics"},
    {"model_check"},
    {"fwdgrad"},
    {"training", "global_optimization", "integrations"},
    {"config"},
    {"experiment"},
    {"cli"},
    {"scripts", "train", "doctor"},
]
# Which modules may import a third party, by the beginning of their names.
DOORS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("hydra", "omegaconf"): ("fwdgrad.experiment", "fwdgrad.cli", "scripts."),
    ("lightning", "pytorch_lightning"): ("fwdgrad.integrations.lightning",),
    ("transformers", "accelerate", "peft"): ("fwdgrad.integrations.transformers",),
    ("tensorboard", "torch.utils.tensorboard"): ("fwdgrad.training.tracking", "scripts."),
}
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


@cache
def sources() -> dict[str, str]:
    """Return the source of every module, by its dotted name."""
    paths = [*(ROOT / "fwdgrad").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "train.py"]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return dict(zip(names, (path.read_text() for path in paths), strict=True))


def imports(module: str, source: str, is_package: bool = False) -> Iterator[tuple[str, str]]:
    """Yield what a module imports, anywhere in it, as (module, name or '')."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from ((base, alias.name) for alias in node.names)


def part_of(module: str) -> str:
    first, _, rest = module.partition(".")
    if first != "fwdgrad" or not rest:
        return first
    part = rest.split(".")[0]
    return "cli" if part.startswith("cli_") else part


def offences(modules: dict[str, str]) -> list[str]:
    """Return what each module does that the layers and the doors forbid."""
    found, known = [], set(sources()) | set(modules)
    for module, source in modules.items():
        part = part_of(module)
        if part not in LEVEL:
            found.append(f"{module} has no layer")
            continue
        is_package = any(other.startswith(f"{module}.") for other in known)
        for base, name in imports(module, source, is_package):
            for names, doors in DOORS.items():
                full = f"{base}.{name}" if name else base
                if any(f"{full}.".startswith(f"{third}.") for third in names) and not module.startswith(doors):
                    found.append(f"{module} imports {full}")
            if base.split(".")[0] not in ("fwdgrad", "scripts", "train"):
                continue
            target = part_of(f"fwdgrad.{name}" if base == "fwdgrad" and f"fwdgrad.{name}" in known else base)
            if target not in LEVEL:
                found.append(f"{module} imports {base}, which has no layer")
            elif target != part and LEVEL[target] >= LEVEL[part]:
                found.append(f"{module} imports {target}")
    return found


def test_imports_go_downward_only_and_third_parties_come_in_by_their_doors() -> None:
    modules = sources()
    assert {"fwdgrad", "fwdgrad.tangents", "fwdgrad.directions.base", "train"} <= set(modules)
    assert offences(modules) == []


OFFENDERS = {
    "upward": ("fwdgrad.optim", "from fwdgrad.estimators.base import deposit", "fwdgrad.optim imports estimators"),
    "upward by import": ("fwdgrad.tree", "import fwdgrad.training.loop", "fwdgrad.tree imports training"),
    "upward in a function": (
        "fwdgrad.dual.api",
        "def f():\n    from fwdgrad.engines import Func",
        "fwdgrad.dual.api imports engines",
    ),
    "upward for types": (
        "fwdgrad.directions.base",
        "if TYPE_CHECKING:\n    from fwdgrad.estimators import Estimator",
        "fwdgrad.directions.base imports estimators",
    ),
    "upward by a relative import": (
        "fwdgrad.engines.func",
        "from ..cli import train",
        "fwdgrad.engines.func imports cli",
    ),
    "upward from a package": ("fwdgrad.engines", "from ..experiment import run", "fwdgrad.engines imports experiment"),
    "sibling": (
        "fwdgrad.engines.func",
        "from fwdgrad.directions import Normal",
        "fwdgrad.engines.func imports directions",
    ),
    "sibling as a module": ("fwdgrad.engines.func", "from fwdgrad import optim", "fwdgrad.engines.func imports optim"),
    "sibling below": ("fwdgrad.tree", "from fwdgrad.tangents import Dense", "fwdgrad.tree imports tangents"),
    "the package from inside": (
        "fwdgrad.optim",
        "from fwdgrad import ForwardGradient",
        "fwdgrad.optim imports fwdgrad",
    ),
    "an entry point": ("fwdgrad.experiment", "from train import main", "fwdgrad.experiment imports train"),
    "a module without a layer": ("fwdgrad.helpers", "import math", "fwdgrad.helpers has no layer"),
    "hydra": ("fwdgrad.training.loop", "from hydra.utils import instantiate", "imports hydra.utils.instantiate"),
    "omegaconf": ("fwdgrad.config", "import omegaconf", "fwdgrad.config imports omegaconf"),
    "tensorboard": ("fwdgrad.training.loop", "from torch.utils import tensorboard", "imports torch.utils.tensorboard"),
    "its writer": (
        "fwdgrad.experiment",
        "from torch.utils.tensorboard import SummaryWriter",
        "imports torch.utils.tensorboard.SummaryWriter",
    ),
}


@pytest.mark.parametrize(("module", "source", "text"), OFFENDERS.values(), ids=OFFENDERS)
def test_offenders_are_caught(module: str, source: str, text: str) -> None:
    found = offences({module: source})
    assert any(text in offence for offence in found), found


def test_what_is_allowed_is_not_caught() -> None:
    allowed = {
        "fwdgrad.estimators.forward_gradient": "from .base import deposit\nfrom ..engines import Func\nimport torch",
        "fwdgrad.directions.low_rank": "from fwdgrad import tangents\nfrom fwdgrad.directions.base import Params",
        "fwdgrad.experiment": "import hydra\nfrom fwdgrad import ForwardGradient",
        "fwdgrad.training.tracking": "from torch.utils.tensorboard import SummaryWriter",
        "train": "from fwdgrad.cli import train",
    }
    assert offences(allowed) == []
