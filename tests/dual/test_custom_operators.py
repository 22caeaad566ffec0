"""Operators of other libraries, written in C++: without a rule they are refused, for their tangent would be lost."""

import pytest
import torch
from checks import check, directions
from torchvision import ops

from fwdgrad.dual import DualError
from fwdgrad.dual.forms import per_direction
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tensor import RULES, dual, tangent

X = torch.randn(1, 2, 6, 6, dtype=torch.float64)
BOXES = [torch.tensor([[1.0, 1.0, 4.0, 5.0]], dtype=torch.float64)]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("roi_align", lambda x: ops.roi_align(x, BOXES, 2)),
        ("roi_pool", lambda x: ops.roi_pool(x, BOXES, 2)),
        (
            "deform_conv2d",
            lambda x: ops.deform_conv2d(x, torch.zeros(1, 2, 6, 6).double(), torch.ones(2, 2, 1, 1).double()),
        ),
    ],
)
def test_refused_by_name(name: str, run) -> None:
    with pytest.raises(DualError, match=f"torchvision::{name}: .* drops the tangent"):
        directions(run, (X,), (torch.ones(1, *X.shape, dtype=torch.float64),), fallback="silent")


def test_a_rule_may_be_given() -> None:
    operator = torch.ops.torchvision.roi_align
    saved = dict(RULES)

    @rule(operator)
    def roi_align(input, rois, *args):
        t = tangent(input)
        return dual(operator(input, rois, *args), per_direction(lambda tk: operator(tk, rois, *args), t))

    try:
        check(lambda x: ops.roi_align(x, BOXES, 2), X)
    finally:
        RULES.clear()
        RULES.update(saved)
