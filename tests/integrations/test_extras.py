"""Without the library, an integration says which extra brings it."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(("module", "library"), [("lightning", "lightning.pytorch"), ("transformers", "accelerate")])
def test_a_missing_library_is_named_with_its_extra(module: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"fwdgrad.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'fwdgrad\[{module}\]'"):
        importlib.import_module(f"fwdgrad.integrations.{module}")
