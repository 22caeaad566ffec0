"""Complex numbers: their parts, and what is made of parts.

A tangent of complex numbers is a complex number; all of these are linear over the reals, but for ``polar``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fwdgrad.dual.forms import align, attach, linear
from fwdgrad.dual.registry import rule
from fwdgrad.dual.rules.shapes import attribute
from fwdgrad.dual.tensor import tangent, view_of

linear(torch.real, batched=torch.real)
linear(torch.imag, batched=torch.imag)
linear(attribute("real"), batched=torch.real)
linear(attribute("imag"), batched=torch.imag)
linear(torch.view_as_real, batched=lambda t: torch.view_as_real(t.resolve_conj()))
linear(torch.conj, batched=torch.conj)
linear(torch.conj_physical, batched=torch.conj_physical)
linear(torch.resolve_conj, batched=lambda t: t.resolve_conj().clone())
linear(torch.resolve_neg, batched=lambda t: t.resolve_neg().clone())


@rule(torch.view_as_complex)
def view_as_complex(input: Tensor) -> Tensor:
    """Read pairs of tangents as complex numbers, copying them if they do not lie together."""
    y, t = torch.view_as_complex(input), tangent(input)
    if t is None:
        return y
    lies = t.stride(-1) == 1 and all(s % 2 == 0 for s in t.stride()[:-1]) and t.storage_offset() % 2 == 0
    return view_of(input, y, torch.view_as_complex(t if lies and not t.is_neg() else t.contiguous().resolve_neg()))


@rule(torch.complex)
def complex_(real: Tensor, imag: Tensor) -> Tensor:
    """Push tr + i ti."""
    z = torch.complex(real, imag)
    tr, ti = tangent(real), tangent(imag)
    if tr is None and ti is None:
        return z
    parts = [None if t is None else align(t, z.dim()) for t in (tr, ti)]
    like = next(part for part in parts if part is not None)
    filled = torch.broadcast_tensors(*[torch.zeros_like(like) if part is None else part for part in parts])
    return attach(z, torch.complex(*[part.contiguous() for part in filled]))


@rule(torch.polar)
def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """Push z = r exp(i a) by exp(i a) tr + i z ta."""
    z = torch.polar(abs, angle)
    tr, ta = tangent(abs), tangent(angle)
    t = None if tr is None else align(tr, z.dim()) * torch.polar(torch.ones_like(angle), angle)
    if ta is not None:
        turned = align(ta, z.dim()) * (1j * z)
        t = turned if t is None else t + turned
    return attach(z, t)
