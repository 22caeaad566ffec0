"""What is said when a configuration cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """The configuration asks for something that cannot be had; the message says what and what to do."""


@contextmanager
def section(name: str) -> Iterator[None]:
    """Turn any error while a section is built into one ConfigError that names the section."""
    try:
        yield
    except InstantiationException as error:
        raise ConfigError(_in_section(name, error.__cause__ or error)) from error
    except (ValueError, TypeError, RuntimeError, ImportError, AttributeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(_in_section(name, error)) from error


def _in_section(name: str, error: BaseException) -> str:
    line = first_line(error)
    return line if line.startswith(name) else f"{name}: {line}"


def first_line(error: BaseException) -> str:
    """Return the line of a message that says what was wrong."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
