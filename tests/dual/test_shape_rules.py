"""Views, parts, joins and in-place changes of shape: above all shared memory, which sample inputs leave out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import check, directions
from torch import Tensor

from fwdgrad.dual.tensor import DualError


def _matrix(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape or (3, 4), dtype=dtype, generator=torch.Generator().manual_seed(1))


def _written(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """Make a function that changes a copy through views, and returns all of the copy."""

    def function(x: Tensor) -> Tensor:
        y = x * 2
        change(y)
        return y

    return function


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "row": lambda y: y[1].mul_(3),
    "transposed": lambda y: y.t()[1].exp_(),
    "permuted": lambda y: y.permute(1, 0)[2:].sin_(),
    "diagonal": lambda y: y.diagonal().mul_(y[0, :3]),
    "reshaped": lambda y: y.view(2, 6)[1].tanh_(),
    "flattened": lambda y: y.flatten().unflatten(0, (4, 3))[2].mul_(-1),
    "split": lambda y: y.split([1, 3], 1)[1].cumsum_(1),
    "chunks": lambda y: y.chunk(2, 1)[0].add_(y.chunk(2, 1)[1]),
    "unbound": lambda y: y.unbind(1)[3].copy_(y.unbind(1)[0] ** 2),
    "unfolded": lambda y: y.unfold(1, 2, 2)[:, 0].mul_(y[:, 2:]),
    "strided": lambda y: y.as_strided((2, 2), (4, 2), 1).mul_(y[0, 0]),
    "squeezed": lambda y: y.unsqueeze(1).squeeze(1).select(1, 2).zero_(),
    "narrowed twice": lambda y: y.narrow(1, 1, 3).narrow(0, 0, 2).mul_(y.narrow(1, 0, 3).narrow(0, 1, 2)),
    "moved": lambda y: y.movedim(0, 1)[0].fill_(5.0),
    "swapped in place": lambda y: y.t().t_().transpose_(0, 1)[3].mul_(y[:, 0]),
    "reshaped in place": lambda y: y[0].unsqueeze_(0).mul_(y[1:2]),
    "squeezed in place": lambda y: y[:1].squeeze_(0).mul_(y[1]),
    "diagonal filled": lambda y: y.t().fill_diagonal_(3.0),
    "viewed before and after": lambda y: (y[0].mul_(2), y.mul_(y), y[:, 1].mul_(y[:, 2])),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_through_views(name: str) -> None:
    check(_written(WRITES[name]), _matrix(), reverse=False)  # which refuses to write to some of these views


COMPLEX_WRITES: dict[str, Callable[[Tensor], Any]] = {
    "real part": lambda y: y.real.mul_(3),
    "imaginary part": lambda y: y.imag.copy_(y.real**2),
    "as real": lambda y: torch.view_as_real(y)[..., 1].exp_(),
    "conjugate": lambda y: y.conj().mul_(1j * y),
    "adjoint": lambda y: y.mH[1].mul_(2 - 1j),
    "conjugate's imaginary part": lambda y: y.conj().imag.mul_(2),
    "row of the conjugate": lambda y: y.conj()[0].copy_(y[1]),
}


@pytest.mark.parametrize("name", COMPLEX_WRITES)
def test_writes_through_parts_of_complex_numbers(name: str) -> None:
    check(_written(COMPLEX_WRITES[name]), _matrix(dtype=torch.complex128), reverse=False)


def test_a_view_sees_what_is_written_to_its_base() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 1
        column, rows = y[:, 1], y.view(2, 6)
        y.mul_(x)
        y[0] = x[1].sin()
        return torch.cat((column, rows.flatten()))

    check(function, _matrix())


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "unsqueeze_": lambda y: y.unsqueeze_(0).unsqueeze_(-1),
    "squeeze_": lambda y: y.squeeze_(),
    "squeeze_ of one": lambda y: y.squeeze_(1).squeeze_((0,)),
    "transpose_": lambda y: y.transpose_(0, 2),
    "swapaxes_": lambda y: y.swapaxes_(-1, 0),
    "as_strided_": lambda y: y.as_strided_((2, 3), (1, 2), 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_shape_in_place(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        assert CHANGES[name](y) is y
        return y * y

    check(function, _matrix(2, 1, 4))


@pytest.mark.parametrize("dims", [(0, -1), (-1, 0), (0, 0)])
def test_dimensions_of_a_number(dims: tuple[int, int]) -> None:
    check(lambda x: x.transpose(*dims) * 2, _matrix(1)[0])
    check(lambda x: torch.stack((x.unsqueeze(dims[0]), x.reshape(1)), dims[1]), _matrix(1)[0])
    check(lambda x: (x.cumsum(dims[0]), x.sort(dims[0]).values, x.prod(), x.var(correction=0)), _matrix(1)[0])


@pytest.mark.parametrize(
    ("mode", "pad"),
    [("reflect", (1, 2, 1, 0)), ("replicate", (2, 1, 0, 3)), ("circular", (1, 2, 2, 1)), ("constant", (1, -1))],
)
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 3, 4)])
def test_padding(mode: str, pad: tuple[int, ...], shape: tuple[int, ...]) -> None:
    check(lambda x: F.pad(x, pad, mode, 7.0 if mode == "constant" else None), _matrix(*shape))


def test_joining_plain_tensors_and_duals() -> None:
    constant = _matrix(2, 4)
    check(lambda x: torch.cat((constant, x, x[:1]), 0), _matrix())
    check(lambda x, y: torch.stack((x, constant, y), -1), _matrix(2, 4), _matrix(2, 4))
    check(lambda x: torch.cat((torch.empty(0, dtype=torch.float64), x), 1), _matrix())
    check(lambda x, y: torch.block_diag(x, constant, y), _matrix(), _matrix(5))
    check(lambda x: torch.cat((constant.float(), x)), _matrix())


def test_sequences_are_padded() -> None:
    pad = torch.nn.utils.rnn.pad_sequence
    check(lambda x, y: pad([x, y], True, 3.0) * 2, _matrix(2, 3), _matrix(4, 3))
    check(lambda x, y: pad([x, y], padding_side="left"), _matrix(2), _matrix(4))


def test_fold_and_unfold() -> None:
    check(lambda x: F.unfold(x, 2, padding=1), _matrix(2, 3, 4, 4))
    check(lambda x: F.fold(x, (4, 4), 2), _matrix(2, 8, 9))
    check(lambda x: F.channel_shuffle(F.pixel_unshuffle(x, 2), 2), _matrix(1, 1, 4, 4))


def test_memory_of_a_dual_cannot_be_exchanged() -> None:
    with pytest.raises(DualError, match="cannot be addressed anew in place"):
        directions(_written(lambda y: y.resize_(2, 2)), (_matrix(),), (_matrix(1, 3, 4),))


def test_as_strided_beyond_the_tensor_is_refused() -> None:
    with pytest.raises(DualError, match="reaches outside of the tensor"):
        directions(lambda x: (x * 2)[1:].as_strided((2,), (1,), 0), (_matrix(),), (_matrix(1, 3, 4),))


def test_casts_carry_the_tangent() -> None:
    v = _matrix(2, 3, 4)
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        outputs, pushed = directions(lambda x, dtype=dtype: (x.to(dtype), x.type(dtype)), (_matrix(),), (v,))
        for y, t in zip(outputs, pushed, strict=True):
            assert y.dtype is dtype and t is not None and torch.equal(t, v.to(dtype))
    outputs, pushed = directions(lambda x: (x.to(torch.int64), x.long(), x.view(torch.int64)), (_matrix(),), (v,))
    assert pushed == [None, None, None]
