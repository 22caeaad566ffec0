"""Complex numbers. Cotangents are adjoint with respect to Re sum conj(u) v, as PyTorch's gradients are."""

from __future__ import annotations

import torch

from fwdgrad.dual.tape.table import aten, transpose

for _op in (aten._conj, aten._conj_physical, aten.conj_physical):
    transpose(_op, lambda u, x: torch.conj_physical(u))
transpose(aten._neg_view, lambda u, x: -u)
transpose(aten.view_as_real, lambda u, x: torch.view_as_complex(u.contiguous()))
transpose(aten.view_as_complex, lambda u, x: torch.view_as_real(u.resolve_conj()))
transpose(aten.complex, lambda u, re, im: u.real, lambda u, re, im: u.imag, terms=((0,), (1,)))
