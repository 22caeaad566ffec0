"""What the engine does around the rules: its entry points, what cuts a tangent, fallback, refusals, no graph."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fwdgrad import dual
from fwdgrad.dual.decompose import decompose
from fwdgrad.dual.known_wrong import KNOWN_WRONG
from fwdgrad.dual.tensor import RULES
from fwdgrad.tangents import Dense, LowRank

X, V = torch.linspace(-1, 2, 6).view(2, 3).double(), torch.linspace(1, 3, 6).view(2, 3).double()


def test_jvp_has_the_semantics_of_torch_func() -> None:
    def f(a, b):
        return {"y": [a["x"].sin() * b], "z": (a["x"] @ b.T).sum()}, {"aux": a["x"] * 2}

    primals, tangents = ({"x": X}, X + 1), ({"x": V}, V * 2)
    ours = dual.jvp(f, primals, tangents, has_aux=True)
    torch.testing.assert_close(ours, torch.func.jvp(f, primals, tangents, has_aux=True))
    assert type(ours[2]["aux"]) is Tensor


def test_a_result_that_does_not_depend_on_the_input_has_zero_tangent() -> None:
    y, t = dual.jvp(lambda x: (torch.ones(3), x.argmax()), (X,), (V,))
    assert not t[0].any() and y[1] == 5 and not t[1].any()


@pytest.mark.parametrize(
    ("primals", "tangents", "message"),
    [
        ((X,), (V, V), "same structure"),
        ((X,), (V[0],), r"tangent 0 must have shape \(2, 3\) and dtype torch.float64, got \(3,\)"),
        ((X,), (V.float(),), r"dtype torch.float64, got \(2, 3\) and torch.float32"),
        ((torch.arange(3),), (torch.arange(3),), "must be floating point or complex, got torch.int64"),
    ],
)
def test_jvp_says_what_it_requires(primals, tangents, message) -> None:
    with pytest.raises(ValueError, match=message):
        dual.jvp(lambda *x: x[0], primals, tangents)


def test_jvp_does_not_nest() -> None:
    with pytest.raises(RuntimeError, match="does not nest"):
        dual.jvp(lambda x: dual.jvp(torch.sin, (x,), (x,))[1], (X,), (V,))
    dual.jvp(torch.sin, (X,), (V,))  # and the refusal leaves nothing behind


@pytest.mark.parametrize(
    "cut",
    [lambda x: x.detach(), lambda x: x.data, lambda x: no_grad(lambda: x * 1), lambda x: torch.tensor(x.tolist())],
    ids=["detach", "data", "no_grad", "tolist"],
)
def test_a_tangent_stops_where_a_gradient_does(cut) -> None:
    _, t = dual.jvp(lambda x: cut(x) * x, (X,), (V,))
    torch.testing.assert_close(t, X.double() * V, check_dtype=False, rtol=1e-6, atol=1e-6)


def no_grad(f):
    with torch.no_grad():
        return f()


def test_an_outer_no_grad_does_not_stop_a_tangent() -> None:
    with torch.no_grad():
        _, t = dual.jvp(torch.sin, (X,), (V,))
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(t, V * X.cos())


def test_no_autograd_node_is_created() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    )
    params = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: Dense(torch.ones(2, *p.shape)) for name, p in params.items()}
    images, labels = torch.randn(5, 1, 8, 8), torch.randint(0, 4, (5,))

    def fn(p):
        return F.cross_entropy(torch.func.functional_call(model, p, (images,)), labels), None

    before = torch._C._autograd._get_sequence_nr()
    value, derivatives, _ = dual.directional_derivatives(fn, params, tangents, fallback="error")
    assert torch._C._autograd._get_sequence_nr() == before
    assert value.grad_fn is None and not derivatives.requires_grad and derivatives.shape == (2,)


def test_per_example_losses_give_per_example_derivatives() -> None:
    w, x = torch.randn(3, 4), torch.randn(5, 4)
    directions = {"w": LowRank(torch.randn(2, 1, 3), torch.randn(2, 1, 4))}
    value, derivatives, _ = dual.directional_derivatives(
        lambda p: (F.linear(x, p["w"]).sum(1), None), {"w": w}, directions
    )
    expected = torch.einsum("bi,koi->kb", x, directions["w"].materialize())
    assert value.shape == (5,)
    torch.testing.assert_close(derivatives, expected)


def test_directional_derivatives_say_what_they_require() -> None:
    params = {"w": torch.ones(3)}
    with pytest.raises(ValueError, match=r"tangent 'w' must have shape \(3,\), got \(4,\)"):
        dual.directional_derivatives(lambda p: (p["w"].sum(), None), params, {"w": Dense(torch.ones(1, 4))})
    with pytest.raises(ValueError, match="tangent 'v' has no parameter"):
        dual.directional_derivatives(lambda p: (p["w"].sum(), None), params, {"v": Dense(torch.ones(1, 3))})
    with pytest.raises(ValueError, match=r"scalar loss or a vector of per-example losses, got shape \(1, 3\)"):
        dual.directional_derivatives(lambda p: (p["w"][None], None), params, {"w": Dense(torch.ones(1, 3))})
    value, derivatives, _ = dual.directional_derivatives(
        lambda p: (torch.tensor(2.0), None), params, {"w": Dense(torch.ones(4, 3))}
    )
    assert value == 2 and derivatives.tolist() == [0] * 4


def test_what_is_asked_of_a_dual_is_answered_by_its_primal() -> None:
    def f(x):
        assert x.shape == (2, 3) and x.dtype is torch.float64 and len(x) == 2 and x.requires_grad
        assert float(x[1, 2]) == 2 and x[1, 2].item() == 2 and int(x.max()) == 2 and f"{x[1, 2]:.1f}" == "2.0"
        assert type(x > 0) is Tensor and (x > 0).sum() == 4 and type(x.argmax()) is Tensor and 2.0 in x
        assert repr(x).startswith("Dual(tensor(") and repr(x).endswith("num_directions=1)")
        twin = copy.deepcopy(x)
        twin.mul_(2)
        return (twin + sum(row for row in x) if x.sum() > 0 else x), x.clone()

    _, (t, unchanged) = dual.jvp(f, (X,), (V,))
    torch.testing.assert_close((t, unchanged), (2 * V + V.sum(0), V))


def test_leaving_pytorch_with_a_tangent_is_refused() -> None:
    with pytest.raises(dual.DualError, match=r"numpy: leaving PyTorch would drop the tangent"):
        dual.jvp(lambda x: torch.from_numpy(x.numpy()), (X,), (V,))
    with pytest.raises(dual.DualError, match="out= is not supported"):
        dual.jvp(lambda x: torch.sin(x, out=torch.empty(2, 3).double()), (X,), (V,))


def test_fallback_is_right_counted_and_reported_once(monkeypatch) -> None:
    monkeypatch.delitem(RULES, torch.sinc)
    monkeypatch.setattr("fwdgrad.dual.fallback._warned", set())
    before = dual.fallback_counts().get("torch.sinc", 0)
    with pytest.warns(UserWarning, match=r"torch\.sinc has no rule in fwdgrad.dual"):
        _, t = dual.jvp(torch.sinc, (X,), (V,))
    torch.testing.assert_close(t, torch.func.jvp(torch.sinc, (X,), (V,))[1])
    dual.jvp(torch.sinc, (X,), (V,))  # a second warning would be an error
    assert dual.fallback_counts()["torch.sinc"] == before + 2
    with pytest.raises(dual.DualError, match=r"torch\.sinc: no rule, and fallback='error'"):
        dual.jvp(torch.sinc, (X,), (V,), fallback="error")
    with pytest.raises(ValueError, match="fallback must be one of"):
        dual.jvp(torch.sinc, (X,), (V,), fallback="maybe")


def test_known_wrong_formulas_are_never_the_fallback(monkeypatch) -> None:
    for function in KNOWN_WRONG:
        monkeypatch.delitem(RULES, function, raising=False)
    with pytest.raises(dual.DualError, match=r"cholesky_inverse: PyTorch's forward-mode formula for it is wrong"):
        dual.jvp(torch.cholesky_inverse, (torch.eye(2),), (torch.eye(2),))


def test_a_custom_function_is_refused_until_it_has_a_rule() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

    with pytest.raises(dual.DualError, match=r"forward: the dual engine cannot see the derivative of a custom"):
        dual.jvp(Twice.apply, (X,), (V,))

    @dual.rule(Twice)
    def twice(x):
        t = dual.tangent(x)
        return dual.dual(x * 2, None if t is None else t * 2)

    torch.testing.assert_close(dual.jvp(Twice.apply, (X,), (V,)), (X * 2, V * 2))
    torch.testing.assert_close(Twice.apply(X), X * 2)


def test_a_function_written_in_python_runs_on_its_parts() -> None:
    assert decompose(F.mse_loss) is not None and decompose(torch.sin) is None
    f = lambda x: F.gaussian_nll_loss(x, V, X.abs() + 1)  # noqa: E731
    torch.testing.assert_close(dual.jvp(f, (X,), (V,), fallback="error"), torch.func.jvp(f, (X,), (V,)))


def test_autocast_rounds_the_tangent_as_the_value() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x, labels = torch.randn(6, 8), torch.randint(0, 3, (6,))
    params = {name: p.detach() for name, p in model.named_parameters()}
    low_rank = {
        n: LowRank(torch.ones(2, 1, p.shape[0]), torch.ones(2, 1, p.shape[1]))
        for n, p in params.items()
        if p.dim() == 2
    }
    dense = {n: Dense(torch.ones(2, *p.shape)) for n, p in params.items()}

    def fn(p):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = torch.func.functional_call(model, p, (x,))
            assert y.dtype is torch.bfloat16
            return F.cross_entropy(y, labels), None

    exact = dual.directional_derivatives(
        lambda p: (F.cross_entropy(torch.func.functional_call(model, p, (x,)), labels), None), params, dense
    )
    for tangents in (dense, dense | low_rank):
        value, derivatives, _ = dual.directional_derivatives(fn, params, tangents)
        torch.testing.assert_close((value.float(), derivatives.float()), exact[:2], rtol=0.1, atol=0.05)
