"""In-place writes and views: what is written is seen wherever the memory is seen, in primal and tangent."""

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions
from torch import Tensor

from fwdgrad import dual


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def write_through_a_row(x):
    y = x * 1
    y[0].mul_(2)
    return y


def write_to_the_base_of_views(x):
    y = x * 1
    row, column, flat = y[1], y.T[0], y.view(-1)
    y.mul_(y)
    return row.sum(), column * 2, flat[::2]


def write_through_two_views_that_overlap(x):
    y = x * 1
    row, column = y[0], y[:, 0]
    row.add_(1).mul_(3)
    column.mul_(2)
    y.T[1:].div_(y.T[:1].clone())
    return y, row, column


def write_to_a_view_of_a_view(x):
    y = x * 1
    y.view(-1)[2:6].view(2, 2).t().mul_(5)
    return y.exp()


def assign_rows_in_a_loop(x):
    out = torch.zeros(3, 4, dtype=x.dtype)
    for i in range(3):
        out[i] = x[2 - i] * x[i]
    return out


def add_into_a_view_of_a_new_tensor(x):
    out = torch.zeros(2, 4, dtype=x.dtype)
    out[0].copy_(x[0])
    out[1].add_(x[1], alpha=2)
    return out.mean(1)


def overwrite_with_a_constant(x):
    y = x * 2
    kept = y[1]
    y[1] = 7.0
    y[0].zero_()
    return y * y, kept


def assign_by_mask_and_index(x):
    y = x * 1
    y[x > 0] = 0.5
    y[torch.tensor([0, 2]), torch.tensor([1, 3])] = x[0, :2]
    y[:, [0, 1]] *= 3
    return y


def write_to_what_a_result_was_shared_with(x):
    y = x * 1
    z = y + 1  # its tangent is that of y
    y.mul_(2)
    w = z.view(-1)
    w.sin_()
    return y, z, w


def relu_before_its_input_is_overwritten(x):
    h = x * 1
    y = F.relu(h)
    h.mul_(2)
    z = F.relu(h)
    z.add_(1)
    return y, z, h


def copy_and_go_on_apart(x):
    a, b = x * 1, x * 2
    a.copy_(b)
    a.mul_(3)
    b.sin_()
    c = torch.zeros_like(a)
    c[...] = a
    c.copy_(a.view(-1).view(3, 4))
    c.add_(a).mul_(2)
    return a, b, c


def write_to_an_expanded_tangent(x):
    y = x[:, :1] + torch.zeros(3, 4, dtype=x.dtype)
    y.mul_(2)
    y[0] += 1
    return y


SAVED_BY_REVERSE = (relu_before_its_input_is_overwritten, write_to_the_base_of_views)  # which it then complains about
PROGRAMS = [
    value for value in dict(globals()).values() if callable(value) and getattr(value, "__module__", "") == __name__
]
PROGRAMS = [program for program in PROGRAMS if program is not randn]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_writes_are_seen_by_every_view(program) -> None:
    saved = program is relu_before_its_input_is_overwritten
    check(program, randn(3, 4), reverse=program not in SAVED_BY_REVERSE, tape=not saved)


def test_a_plain_tensor_that_others_see_is_not_written_to() -> None:
    y = torch.zeros(4)
    other = y.view(2, 2)
    with pytest.raises(dual.DualError, match=r"Tensor\.add_: a Dual is written in place into a plain tensor"):
        dual.jvp(lambda x: y.add_(x).sum(), (torch.ones(4),), (torch.ones(4),))
    assert type(y) is Tensor and not other.any()


def test_an_integer_tensor_does_not_receive_a_dual() -> None:
    y = torch.zeros(4, dtype=torch.long)
    with pytest.raises(dual.DualError, match=r"__setitem__: a Dual cannot be written into a torch\.int64"):
        dual.jvp(lambda x: y.__setitem__(0, x[0]) or x, (torch.ones(4),), (torch.ones(4),))


def test_a_tensor_that_became_dual_is_plain_again_afterwards() -> None:
    buffer = torch.zeros(4)
    _, t = dual.jvp(lambda x: buffer.mul_(0.5).add_(x).sum(), (torch.ones(4),), (torch.ones(4),))
    assert t == 4 and type(buffer) is Tensor and not buffer.__dict__
    torch.testing.assert_close(buffer, torch.ones(4))


def test_the_callers_tensors_and_tangents_are_not_written_to() -> None:
    x, v = randn(3), randn(3)
    kept = v.clone()
    dual.jvp(lambda x: (x + 1).mul_(2).sin_().add_(x * x), (x,), (v,))
    dual.jvp(lambda x: x.view(-1).clone().mul_(2), (x,), (v,))
    torch.testing.assert_close(v, kept, rtol=0, atol=0)


@pytest.mark.parametrize("plain_other", [True, False])
def test_in_place_variants_match_out_of_place_ones(plain_other: bool) -> None:
    other = randn(3, 4)
    for name in ("add", "sub", "mul", "div", "atan2", "pow", "copysign", "fmod"):

        def out_of_place(x, y, name=name):
            return getattr(x.abs() + 0.5, name)(other if plain_other else y)

        def in_place(x, y, name=name):
            z = x.abs() + 0.5
            alias = z.view(-1)
            getattr(z, name + "_")(other if plain_other else y)
            return alias.view(3, 4)

        inputs, vs = (randn(3, 4), randn(1, 4).expand(3, 4)), (randn(2, 3, 4), randn(2, 3, 4))
        torch.testing.assert_close(directions(out_of_place, inputs, vs), directions(in_place, inputs, vs))
