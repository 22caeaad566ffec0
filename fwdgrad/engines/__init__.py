"""How directional derivatives are computed. ``make_engine`` turns a word or an object into an engine."""

from __future__ import annotations

from collections.abc import Callable

from fwdgrad.engines.base import Engine, Evaluation, Function
from fwdgrad.engines.dual import Dual
from fwdgrad.engines.finite_difference import FiniteDifference
from fwdgrad.engines.func import Func
from fwdgrad.words import check_word

ENGINES: dict[str, Callable[[], Engine]] = {"func": Func, "dual": Dual, "finite_difference": FiniteDifference}


def make_engine(engine: str | Engine) -> Engine:
    """Return the engine meant by a word of ``ENGINES`` or by an object that is one.

    Raises:
        ValueError: if the word is not known.
        TypeError: if it is neither.
    """
    if isinstance(engine, str):
        check_word("engine", engine, ENGINES)
        return ENGINES[engine]()
    if callable(engine):
        return engine
    raise TypeError(f"engine must be one of {list(ENGINES)} or a callable engine, got {type(engine).__name__}")


__all__ = ["ENGINES", "Dual", "Engine", "Evaluation", "FiniteDifference", "Func", "Function", "make_engine"]
