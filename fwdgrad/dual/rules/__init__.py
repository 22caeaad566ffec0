"""The rules, by subject.

How to write one:

A rule is entered for a PyTorch function and serves all its spellings: ``torch.f``, ``Tensor.f``, ``torch.special.f``,
known aliases, and in place ``Tensor.f_`` (by copying the result, unless a rule for ``Tensor.f_`` itself is given).
Functions of ``torch.nn.functional`` and ``torch.linalg`` are named explicitly: ``linear(F.pad)``.
A Python function of PyTorch (``F.mse_loss``, ``torch.einsum``) needs none: its body is run on Duals.

Tangents have a leading K, always: (K, *x.shape). The forms (``fwdgrad.dual.forms``), shortest first:

    unary(torch.sin, lambda x, y: torch.cos(x))                          y = f(x), tangent t * f'(x)
    pointwise(torch.tanh, lambda t, x, y: t * (1 - y * y))               y = f(x), tangent of any elementwise form
    binary(torch.atan2, lambda x, y, z: ..., lambda x, y, z: ...)        both partial derivatives, broadcasting
    linear(torch.sum)                                                    the tangent is the function of the tangent
    linear(torch.transpose, batched=lambda t, a, b: t.transpose(shift(a), shift(b)))   all K at once (views too)
    jointly_linear(torch.lerp)  multilinear(torch.linalg.cross)          linear in several arguments, or in each
    nondifferentiable(torch.argmax, torch.floor)                         the result is plain
    @composite(torch.f)  def f(x): ...                                   written in functions that have rules

and, for the rest, the general rule, with the signature of the function:

    @rule(torch.cumprod)
    def cumprod(input, dim, *, dtype=None):
        y = torch.cumprod(input, dim, dtype=dtype)       # dispatch is off: a Dual computes as its primal
        t = tangent(input)                               # (K, *input.shape), or None: the tangent is zero
        if t is None:
            return y
        return dual(y, y * torch.cumsum(t / input, shift(dim)))

    @rule(torch.sort)                                    # several outputs: attach to those that have a tangent
    def sort(input, dim=-1, descending=False, **kwargs):
        out = torch.sort(input, dim=dim, descending=descending, **kwargs)
        t = tangent(input)
        if t is None:
            return out
        picked = t.gather(shift(dim), out.indices.expand(t.shape))
        return torch.return_types.sort((dual(out.values, picked), out.indices))

Obligations of a general rule: every argument that may carry a tangent is asked for it; the parameters have PyTorch's
names; the tangent is new memory, or else ``dual_sharing(y, t, x)``; a result that may be a view of x, or x itself, is
returned by ``view_of(x, y, t)``; a value computed under autocast is the primal's own (``dual`` casts the tangent).
``structured(weight)`` reads a tangent without materialising it, where a rule can use LowRank or PerExample factors.
``tests/dual/checks.py`` checks a rule against reverse mode, differences, and K against single directions.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
