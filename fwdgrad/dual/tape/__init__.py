"""Reverse mode: the tangents of the rules are recorded instead of computed, and the linear map is then transposed."""

from importlib import import_module
from pkgutil import iter_modules

from fwdgrad.dual.tape import transposes
from fwdgrad.dual.tape.table import transpose as transpose

for _module in sorted(module.name for module in iter_modules(transposes.__path__)):
    import_module(f"{transposes.__name__}.{_module}")
