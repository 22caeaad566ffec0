"""Rules of linear algebra against reverse mode and differences, real and complex, K directions against single ones."""

# ruff: noqa: N803, N806 - matrices have capital letters, as in PyTorch's signatures.

from __future__ import annotations

import pytest
import torch
from checks import check
from linalg_cases_spectra import CASES as SPECTRA
from linalg_cases_systems import CASES as SYSTEMS
from linalg_inputs import Case

from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import RULES, dual, tangent

CASES = [*SYSTEMS, *SPECTRA]


@pytest.mark.filterwarnings("ignore:torch.* is deprecated")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_rule(case: Case, dtype: torch.dtype) -> None:
    check(case.function, *case.inputs(dtype), **case.options)


def test_no_name_is_given_twice() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("name", ["inv", "tensorinv"])
def test_an_inverse_that_is_wrong_by_a_thousandth_is_noticed(name: str) -> None:
    saved = dict(RULES)
    case = next(case for case in CASES if case.name == name)
    try:

        @rule(torch.linalg.inv)
        def wrong(A):
            C = torch.linalg.inv(A)
            return dual(C, -1.001 * (C @ tangent(A) @ C))

        for options in ({"differences": False}, {"reverse": False}):
            with pytest.raises(AssertionError, match=r"<u, Jv>|differences"):
                check(case.function, *case.inputs(torch.float64), **options)
    finally:
        RULES.clear()
        RULES.update(saved)
