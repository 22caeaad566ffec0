"""What the command line says when it cannot do what it was asked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
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
        return f"{group}={choice} does not exist; choose one of {', '.join(error.options)}{_hint(choice, error.options)}"
    if isinstance(error, ConfigCompositionException) and (match := _OVERRIDE.search(str(error).splitlines()[0])):
        key = match[1]
        cause = error.__cause__
        if match[2] is not None and cause is not None:
            return f"{key}={match[2]}: {_sentence(cause)}"
        known = _known_keys(configs, config_name, key, overrides)
        return f"there is no key {key!r}{_hint(key, known)}"
    if is_usage(error):
        return _sentence(error)
    return f"{_sentence(error)} (traceback.txt in the run folder has the details)"


def with_resumed(arguments: list[str]) -> list[str]:
    """Return the arguments with those of the run that ``resume=`` names put before them.

    Raises:
        ConfigError: if it is not a run folder, or a sweep is asked for.
    """
    named = [item.partition("=")[2] for item in arguments if item.startswith("resume=")]
    if not named or named[-1] in ("null", ""):
        return arguments
    folder = Path(named[-1])
    recorded = folder / ".hydra" / "overrides.yaml"
    if not recorded.is_file():
        raise ConfigError(f"resume={folder} is not a run folder: it has no {recorded.relative_to(folder)}")
    if any(item in ("-m", "--multirun") for item in arguments):
        raise ConfigError("resume= continues one run; leave out --multirun")
    before = [str(item) for item in OmegaConf.load(recorded) if not str(item).startswith("resume=")]
    return [*before, *arguments, f"hydra.run.dir={_quoted(folder)}"]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _sentence(error: BaseException) -> str:
    """Return an error's text in one line, without OmegaConf's coordinates."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(kept) or type(error).__name__


def _hint(word: str, choices: Iterable[str]) -> str:
    """Return '; did you mean ...?' with the nearest of the choices, by whole key or by its last part."""
    choices = list(choices)
    last = word.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    near += [key for key in choices if key.rsplit(".", 1)[-1] == last]
    near += [
        key for key in choices if difflib.get_close_matches(last, [key.rsplit(".", 1)[-1]], n=1, cutoff=0.75)
    ]
    unique = list(dict.fromkeys(near))[:3]
    return f"; did you mean {' or '.join(unique)}?" if unique else ""


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
