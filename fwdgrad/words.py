"""The words by which a user chooses one of several parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_word(what: str, word: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless the word is one of the choices, naming the nearest one."""
    choices = list(choices)
    if word in choices:
        return
    near = difflib.get_close_matches(word, choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} must be one of {choices}, got {word!r}.{hint}")
