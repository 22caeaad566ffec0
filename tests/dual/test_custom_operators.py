"""Operators of other libraries, written in C++: without a rule they are refused, for their tangent would be lost."""

import functools

import pytest
import torch
from checks import check, directions
from torchvision import ops

from fwdgrad.dual import DualError, transpose, vjp
from fwdgrad.dual.forms import per_direction
from fwdgrad.dual.registry import rule
from fwdgrad.dual.tape.table import TRANSPOSES
from fwdgrad.dual.tape.variable import RECORDERS
from fwdgrad.dual.tensor import RULES, dual, tangent

X = torch.randn(1, 2, 6, 6, dtype=torch.float64)
BOXES = [torch.tensor([[1.0, 1.0, 4.0, 5.0]], dtype=torch.float64)]


@pytest.mark.parametrize(
    ("name", "run"),
    [
        (
            "deform_conv2d",
            lambda x: ops.deform_conv2d(x, torch.zeros(1, 2, 6, 6).double(), torch.ones(2, 2, 1, 1).double()),
        ),
    ],
)
def test_refused_by_name(name: str, run) -> None:
    reason = "drops the tangent|PyTorch's forward mode fails on it"  # by what torchvision enters for reverse mode
    with pytest.raises(DualError, match=f"torchvision::{name}: .*({reason})"):
        directions(run, (X,), (torch.ones(1, *X.shape, dtype=torch.float64),), fallback="silent")


REGIONS = {
    "roi_align": lambda x: ops.roi_align(x, BOXES, 2),
    "roi_align-aligned": lambda x: ops.roi_align(x, BOXES, (2, 3), 0.7, 2, True),
    "roi_pool": lambda x: ops.roi_pool(x, BOXES, 2),
    "roi_pool-outside": lambda x: ops.roi_pool(x, [BOXES[0] + 4], 3),
    "ps_roi_align": lambda x: ops.ps_roi_align(x.repeat(1, 2, 1, 1), BOXES, 2),
    "ps_roi_pool": lambda x: ops.ps_roi_pool(x.repeat(1, 2, 1, 1), BOXES, 2),
    "module": lambda x: ops.MultiScaleRoIAlign(["a"], 2, 2)({"a": x}, BOXES, [(6, 6)]),
}


@pytest.mark.parametrize("run", REGIONS.values(), ids=REGIONS)
def test_regions_have_rules(run) -> None:
    check(run, X)
    directions(run, (X,), (torch.ones(1, *X.shape, dtype=torch.float64),), fallback="error")


def test_a_rule_of_regions_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = torch.ops.torchvision.roi_align

    def wrong(input, rois, *args):
        t = tangent(input)
        return dual(operator(input, rois, *args), per_direction(lambda tk: 1.001 * operator(tk, rois, *args), t))

    monkeypatch.setitem(RULES, operator, wrong)
    with pytest.raises(AssertionError):
        check(REGIONS["roi_align"], X)


def test_boxes_have_no_derivative_as_in_reverse_mode() -> None:
    boxes = torch.tensor([[0.0, 1.0, 1.0, 4.0, 5.0]], dtype=torch.float64)
    run = lambda x, boxes: ops.roi_align(x * x, boxes, 2)  # noqa: E731
    pushed = directions(run, (X, boxes), (torch.zeros(1, *X.shape).double(), torch.ones(1, 1, 5).double()))[1]
    assert pushed[0] is not None and not pushed[0].any()


def test_a_rule_may_be_given() -> None:
    operator = torch.ops.torchvision.roi_align
    saved = dict(RULES)

    @rule(operator)
    def roi_align(input, rois, *args):
        t = tangent(input)
        with torch._C._AutoDispatchBelowAutograd():  # older ones of torchvision make a node for plain tensors too
            return dual(operator(input, rois, *args), per_direction(lambda tk: operator(tk, rois, *args), t))

    try:
        check(lambda x: ops.roi_align(x, BOXES, 2), X, tape=False)
        with pytest.raises(
            DualError, match=r"torchvision.roi_align.default: has no transpose.*enter one with fwdgrad.dual"
        ):
            vjp(lambda x: ops.roi_align(x, BOXES, 2), X)

        @functools.partial(transpose, operator)
        def pull(u, x, rois, scale, *size_and_rest):
            height, width, sampling, aligned = size_and_rest
            shape = (scale, height, width, *x.shape, sampling, aligned)
            return torch.ops.torchvision._roi_align_backward(u, rois, *shape)

        check(lambda x: ops.roi_align(x, BOXES, 2), X)
    finally:
        TRANSPOSES.pop(operator, None)
        RECORDERS.pop(operator.default, None)
        RULES.clear()
        RULES.update(saved)
