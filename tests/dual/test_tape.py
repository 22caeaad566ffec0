"""Reverse mode by transposition: the interface of torch.func, what is refused, how it is extended."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fwdgrad import dual
from fwdgrad.dual.tape.graph import Value
from fwdgrad.dual.tape.table import TRANSPOSES
from fwdgrad.dual.tape.variable import RECORDERS, variable
from fwdgrad.dual.tensor import RULES

DualError = dual.DualError
aten = torch.ops.aten


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# The interface.

X, Y = randn(3, 4), randn(4, seed=1)
PARAMS = {"w": randn(4, 2, seed=2), "layers": [randn(2, seed=3), (randn(3, 1, seed=4),)]}


def loss(p: Any, x: Tensor = X) -> Tensor:
    return ((x @ p["w"] * p["layers"][0] + p["layers"][1][0]).tanh() ** 2).sum()


def test_vjp_is_that_of_torch_func() -> None:
    def function(x: Tensor, pair: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return (x * pair["y"]).sum(1), {"out": x.exp(), "y": pair["y"] * 2}

    cotangents = (randn(3), {"out": randn(3, 4), "y": randn(4)})
    output, pull = dual.vjp(function, X, {"y": Y})
    expected, theirs = torch.func.vjp(function, X, {"y": Y})
    assert_same(output, expected)
    assert_same(pull(cotangents), theirs(cotangents))
    assert_same(pull(cotangents), theirs(cotangents))  # as often as one likes


def test_vjp_with_aux() -> None:
    function = lambda x: (x.sin(), {"mean": x.mean(), "name": "sine"})  # noqa: E731
    output, pull, aux = dual.vjp(function, X, has_aux=True)
    assert type(aux["mean"]) is Tensor and aux["name"] == "sine"
    assert_same((output, pull(X), aux["mean"]), (X.sin(), (X.cos() * X,), X.mean()))


@pytest.mark.parametrize("argnums", [0, 1, (0, 1), (1,), -1])
@pytest.mark.parametrize("has_aux", [False, True])
def test_grad_is_that_of_torch_func(argnums: Any, has_aux: bool) -> None:
    def function(p: Any, x: Tensor, scale: float = 1.0) -> Any:
        value = scale * loss(p, x)
        return (value, (x.sum(), x[0])) if has_aux else value

    ours = dual.grad(function, argnums, has_aux)(PARAMS, X, scale=2.0)
    assert_same(ours, torch.func.grad(function, argnums, has_aux)(PARAMS, X, scale=2.0))
    value, gradient = dual.value_and_grad(function, argnums, has_aux)(PARAMS, X, scale=2.0)
    assert_same((gradient, value), torch.func.grad_and_value(function, argnums, has_aux)(PARAMS, X, scale=2.0))


def test_what_does_not_depend_on_an_input_gives_zeros() -> None:
    _, pull = dual.vjp(lambda x, y: (x * 2, torch.ones(2)), X, Y)
    assert_same(pull((X, torch.ones(2))), (2 * X, torch.zeros_like(Y)))
    assert_same(dual.grad(lambda x: torch.tensor(1.0))(X), torch.zeros_like(X))


def test_integers_have_no_derivative() -> None:
    (_, places), pull = dual.vjp(lambda x: tuple(x.max(1)), X)
    assert not places.is_floating_point()
    cotangent = randn(3)
    assert_same(pull((cotangent, places)), (torch.zeros_like(X).scatter_(1, places[:, None], cotangent[:, None]),))


def test_the_same_tensor_in_two_places() -> None:
    assert_same(dual.grad(lambda x, y: (x * y).sum(), (0, 1))(X, X), (X, X))
    _, pull = dual.vjp(lambda x: (x, x, x.view(12)), X)
    assert_same(pull((X, X, X.view(12))), (3 * X,))


@pytest.mark.parametrize(
    "function",
    [lambda z: (z * z.conj()).real.sum(), lambda z: z.abs().sum(), lambda z: torch.view_as_real(z * (2 - 1j)).sum()],
)
def test_complex_gradients_follow_the_convention_of_torch(function: Any) -> None:
    z = randn(3, 2, dtype=torch.complex128)
    assert_same(dual.grad(function)(z), torch.func.grad(function)(z))


def test_control_flow() -> None:
    def function(x: Tensor) -> Tensor:
        total, step = x.sum() * 0, 0
        while total < 3:
            step += 1
            total = total + (x.sin() if step % 2 else x.exp()).abs().mean()
        return total

    assert_same(dual.grad(function)(X), torch.func.grad(function)(X))


def test_detach_no_grad_and_data_cut() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            a = x * 5
        return (x * x.detach() * a).sum()

    assert_same(dual.grad(function)(X), X.detach() * 5 * X)
    with torch.no_grad():  # an outer one does not
        assert_same(dual.grad(lambda x: (x * x).sum())(X), 2 * X)


def test_no_autograd_node_is_created() -> None:
    leaf = X.clone().requires_grad_()
    before = torch._C._autograd._get_sequence_nr()
    gradient = dual.grad(lambda x: (x * leaf).sin().sum())(leaf)
    assert torch._C._autograd._get_sequence_nr() == before
    assert not gradient.requires_grad


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: dual.grad(lambda x: x * 2)(X), r"one real number, a tensor of shape \(\), got shape \(3, 4\)"),
        (lambda: dual.grad(lambda x: "a")(X), "must return tensors, got str"),
        (lambda: dual.grad(lambda x: x.sum(), 1)(X), "argnums=1 names an argument that is not there: 1 arrived"),
        (lambda: dual.grad(lambda x: x.sum())(torch.arange(3)), "must be floating point or complex, got torch.int64"),
        (lambda: dual.grad(lambda x: x.sum(), has_aux=True)(X), r"must return \(output, aux\), got Dual"),
        (lambda: dual.vjp(lambda x: x, 3.0), "primal 0 must be a tensor, got float"),
        (
            lambda: dual.vjp(lambda x: x.sum(1), X)[1](X),
            r"must have shape \(3,\) and dtype torch.float64, got \(3, ",
        ),
        (lambda: dual.vjp(lambda x: x, X)[1]((X, X)), "must have the structure of the output"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


# What is refused.


def recorded(*shape: int) -> Any:
    return variable(Value(torch.Size((1, *shape)), torch.float64, torch.device("cpu")))


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda t: t * t, r"aten.mul.Tensor: a tangent is multiplied with a tangent, which is not linear"),
        (lambda t: t + 1, r"aten.add.Tensor: something that is not zero is added to a tangent"),
        (lambda t: t + torch.ones(3), r"aten.add.Tensor: something that is not zero is added to a tangent"),
        (lambda t: torch.cat([t, torch.ones(1, 3)]), "aten.cat.default: something that is not zero is joined"),
        (lambda t: t.masked_fill(torch.ones(3, dtype=torch.bool), 2), "aten.masked_fill.Scalar: something that is not"),
        (lambda t: t.exp(), "aten.exp.default: has no transpose.* enter one with fwdgrad.dual.transpose"),
        (lambda t: 1 / t, "aten.reciprocal.default: has no transpose"),
        (lambda t: torch.ones(3) / t, "aten.div.Tensor: has no transpose by the argument that is a tangent here"),
        (lambda t: t.relu_(), "aten.relu.default: has no transpose"),
        (lambda t: t > 0, "aten.gt.Scalar: has no transpose"),
        (lambda t: float(t.sum()), "aten._local_scalar_dense.default: has no transpose"),
        (lambda t: torch.zeros(1, 3).copy_(t), "aten.copy_: a tangent in reverse mode is written into a plain tensor"),
        (lambda t: torch.mul(t, 2, out=torch.zeros(1, 3)), "aten.mul.*: a tangent in reverse mode is written into a"),
        (lambda t: t.fill_(2.0), "aten.fill: something that is not zero is written to a tangent"),
    ],
)
def test_what_is_not_linear_is_refused(use: Any, text: str) -> None:
    with pytest.raises(DualError, match=text), torch.no_grad():
        use(recorded(3))


def test_zero_may_be_added_joined_and_written() -> None:
    with torch.no_grad():
        t = recorded(3)
        assert (t + 0).shape == (t + torch.zeros(2, 1, 3)).shape[1:] == torch.cat([t, torch.zeros(1, 0)], 1).shape
        t.fill_(0.0)
        t.copy_(torch.zeros(3).expand(1, 3))


def test_an_operation_without_a_rule_is_refused() -> None:
    with pytest.raises(DualError, match="_safe_softmax: no rule, and reverse mode has none to fall back to"):
        dual.grad(lambda x: aten._safe_softmax(x, 0).sum())(X)


# Extension.


def test_a_transpose_wrong_by_a_thousandth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from checks import check

    check(torch.sin, X)
    pull = TRANSPOSES[aten.mul].pulls[0]
    assert pull is not None
    wrong = TRANSPOSES[aten.mul]._replace(pulls=(lambda u, x, y: 1.001 * pull(u, x, y), None))
    monkeypatch.setitem(TRANSPOSES, aten.mul, wrong)
    monkeypatch.delitem(RECORDERS, aten.mul.Tensor)
    try:
        with pytest.raises(AssertionError, match="tape: <u, Jv>"):
            check(torch.sin, X)
    finally:
        RECORDERS.pop(aten.mul.Tensor, None)


def test_a_map_may_be_given_with_its_transpose() -> None:
    kernel = randn(3, seed=5)

    def smooth(x: Tensor) -> Any:
        if torch.overrides.has_torch_function((x,)):
            return torch.overrides.handle_torch_function(smooth, (x,), x)
        return torch.from_numpy(x.numpy().cumsum(-1) * 2.0)

    def push(t: Tensor, kernel: Tensor) -> Tensor:
        return torch.from_numpy(t.numpy().cumsum(-1) * 2.0)

    def pull(u: Tensor, kernel: Tensor) -> Tensor:
        return torch.from_numpy(2.0 * u.numpy()[..., ::-1].cumsum(-1)[..., ::-1].copy())

    @dual.rule(smooth)
    def rule(x: Tensor) -> Any:
        return dual.dual(smooth(x), dual.linear_map(push, pull, dual.tangent(x), x, kernel))

    try:
        expected = torch.func.grad(lambda x: (4 * x.cumsum(-1) ** 2).sum())(X)
        assert_same(dual.grad(lambda x: (smooth(x) ** 2).sum())(X), expected)
        assert_same(dual.jvp(smooth, (X,), (X,))[1], 2 * X.cumsum(-1))
        _, again = dual.vjp(smooth, X)
        kernel.add_(1)
        with pytest.raises(DualError, match=r"push.*a tensor of shape .* was changed in place"):
            again(X)
    finally:
        RULES.pop(smooth)


def test_the_cotangents_of_inputs_may_be_written_to() -> None:
    cotangent = X.clone()
    _, pull = dual.vjp(lambda x, y: x + y, X, X)
    for u in pull(cotangent):
        assert_same(u, X)
    assert_same(cotangent, X)


def test_mixed_precision() -> None:
    w = randn(4, 2, dtype=torch.float32)

    def function(w: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.relu(X.float() @ w).float().sum()

    gradient = dual.grad(function)(w)
    assert gradient.dtype is torch.float32
    torch.testing.assert_close(gradient, torch.func.grad(function)(w), rtol=2e-2, atol=2e-2)
