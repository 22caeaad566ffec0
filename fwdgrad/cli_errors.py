"""What the command line says when it cannot do what it was asked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fwdgrad.experiment import ConfigError

# Choices that a package adds: what to install for them.
_EXTRAS = {"optuna": "optuna", "joblib": "launchers", "submitit_local": "launchers", "submitit_slurm": "launchers"}
_EXTRAS |= {"ray": "launchers"}

_OVERRIDE = re.compile(r"override '?\+*~?([^'=\s]+?)'?(?:=(.*?))?'?\.?$", re.MULTILINE)


def is_usage(error: Exception) -> bool:
    """Say whether the error lies in what was asked, rather than in a run."""
    return isinstance(error, ConfigError | HydraException | OmegaConfBaseException)


def explain(error: Exception, configs: Path, config_name: str, overrides: list[str]) -> str:
    """Return one line: what is wrong, and the nearest valid things."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        if group.startswith("hydra/") and choice in _EXTRAS:
            return f"{group}={choice} needs a package that is not installed: pip install 'fwdgrad[{_EXTRAS[choice]}]'"
        return (
            f"{group}={choice} does not exist; choose one of {', '.join(error.options)}{_hint(choice, error.options)}"
        )
    if isinstance(error, ConfigCompositionException) and (match := _OVERRIDE.search(str(error).splitlines()[0])):
        key = match[1]
        cause = error.__cause__
        if match[2] is not None and cause is not None:
            return f"{key}={match[2]}: {sentence(cause)}"
        known = list(_known_keys(configs, config_name, key, overrides))
        if key in known:
            return sentence(error)
        return f"there is no key {key!r}{_hint(key, known) or _siblings(key, known)}"
    if isinstance(error, OverrideParseException):
        reason = sentence(error).partition(" See https")[0].removeprefix(f"Error parsing override '{error.override}' ")
        return f"cannot read {error.override!r}: {reason}; settings are given as KEY=VALUE"
    if is_usage(error):
        return sentence(error)
    if isinstance(error, OSError) and not hasattr(error, "__notes__"):  # Hydra makes the run folder before the run
        return f"cannot write to {error.filename}: {error.strerror}; choose another folder with hydra.run.dir=FOLDER"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "; ".join([first, *getattr(error, "__notes__", [])])


def check_flags(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an option that Hydra does not have; all settings are given as key=value."""
    for item in arguments:
        if item.startswith("="):
            raise ConfigError(f"cannot read {item!r}: the key is missing; settings are given as KEY=VALUE")
    options = [item.partition("=")[0] for item in arguments if item.startswith("-")]
    known = [option for action in get_args_parser()._actions for option in action.option_strings]
    for option in options:
        if option not in known:
            word = option.lstrip("-")
            raise ConfigError(f"there is no option {option!r}; settings are given as KEY=VALUE, such as {word}=...")


def sentence(error: BaseException) -> str:
    """Return an error's text in one line, without OmegaConf's coordinates."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(kept) or type(error).__name__


def _hint(word: str, choices: Iterable[str]) -> str:
    """Return '; did you mean ...?' with the nearest of the choices, by whole key or by its last part."""

    def likeness(choice: str) -> float:
        ends = word.rsplit(".", 1)[-1], choice.rsplit(".", 1)[-1]
        whole, end = (difflib.SequenceMatcher(None, *pair).ratio() for pair in ((word, choice), ends))
        return max(whole, end - 0.05)

    scores = {choice: likeness(choice) for choice in choices}
    best = max(scores.values(), default=0.0)
    near = sorted((key for key in scores if scores[key] > max(0.6, best - 0.1)), key=scores.__getitem__, reverse=True)
    return f"; did you mean {' or '.join(near[:3])}?" if near else ""


def _siblings(word: str, choices: Iterable[str]) -> str:
    section = word.rpartition(".")[0]
    keys = [choice.rpartition(".")[2] for choice in choices if section and choice.rpartition(".")[0] == section]
    return f"; {section} has {', '.join(keys)}" if keys else ""


def _known_keys(configs: Path, config_name: str, key: str, overrides: list[str]) -> list[str]:
    """Return all keys of the configuration that the other overrides make."""
    others = [item for item in overrides if not item.startswith("-") and item.lstrip("+~").partition("=")[0] != key]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs.resolve()), version_base="1.3"):
            try:
                cfg = compose(config_name, overrides=[item for item in others if not item.startswith("hydra.")])
            except Exception:  # another override is wrong as well: the defaults still tell most keys
                cfg = compose(config_name)
    finally:
        GlobalHydra.instance().clear()
    return list(_flatten(OmegaConf.to_container(cfg, resolve=False)))


def _flatten(node: Any, prefix: str = "") -> Iterable[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _flatten(value, f"{prefix}{key}.")
