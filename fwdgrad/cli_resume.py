"""``resume=FOLDER``: the overrides of a recorded run, to be composed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fwdgrad.experiment import ConfigError


@dataclass
class Resumption:
    """A run that goes on.

    Args:
        folder: its run folder.
        given: the overrides of the command line.
        arguments: the recorded overrides followed by those of the command line.
        config: the recorded configuration, not resolved.
        files: what the folder recorded about the run, to be put back if it cannot go on.
    """

    folder: Path
    given: list[str]
    arguments: list[str]
    config: dict[str, Any]
    files: dict[Path, bytes]

    @property
    def sweep(self) -> Path | None:
        """The sweep whose job the run is, if it is one."""
        sweep = self.folder.absolute().parent
        return sweep if (sweep / "multirun.yaml").is_file() or (sweep / "results.csv").is_file() else None

    def differences(self, cfg: DictConfig) -> Iterator[str]:
        """Yield a line for each setting that is not as recorded although the command line does not name it."""
        before = _flatten(self.config)
        after = _flatten(OmegaConf.to_container(cfg, resolve=False))
        keys = ["resume", *(_key(item).replace("/", ".") for item in self.given)]
        for name in dict.fromkeys([*before, *after]):
            asked = any(name == key or name.startswith(f"{key}.") for key in keys)
            if before.get(name) != after.get(name) and not asked:
                yield f"resume: {name} is {after.get(name)!r}, was {before.get(name)!r} in the run that is resumed"

    def restore(self) -> None:
        """Put the records back as they were before the attempt to go on."""
        for path in _records(self.folder):
            if path not in self.files:
                path.unlink()
        for path, content in self.files.items():
            path.write_bytes(content)


def find_resumption(arguments: list[str]) -> Resumption | None:
    """Return the run that ``resume=`` names, or None without one.

    Raises:
        ConfigError: if it is not a run folder, or a sweep is asked for.
    """
    named = [item.partition("=")[2] for item in arguments if item.startswith("resume=")]
    if not named or named[-1] in ("null", ""):
        return None
    folder = Path(named[-1].strip("'\""))
    recorded, config = folder / ".hydra" / "overrides.yaml", folder / ".hydra" / "config.yaml"
    for path in (recorded, config):
        if not path.is_file():
            raise ConfigError(f"resume={folder} is not a run folder: it has no {path.relative_to(folder)}")
    if any(item in ("-m", "--multirun") for item in arguments):
        raise ConfigError("resume= continues one run; leave out --multirun")
    given = {"resume", *(_key(item) for item in arguments)}
    kept = [str(item) for item in OmegaConf.load(recorded) if _key(str(item)) not in given]
    return Resumption(
        folder=folder,
        given=[item for item in arguments if not item.startswith(("-", "resume="))],
        arguments=[*kept, *arguments, f"hydra.run.dir={_quoted(folder)}", "hydra.mode=RUN"],
        config=OmegaConf.to_container(OmegaConf.load(config)),  # type: ignore[arg-type]
        files={path: path.read_bytes() for path in _records(folder)},
    )


def _records(folder: Path) -> list[Path]:
    found = [folder / "status.json", folder / "traceback.txt", *(folder / ".hydra").glob("*.yaml")]
    return [path for path in found if path.is_file()]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {prefix.rstrip("."): node}
    return {name: value for key, child in node.items() for name, value in _flatten(child, f"{prefix}{key}.").items()}
