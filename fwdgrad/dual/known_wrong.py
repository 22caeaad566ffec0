"""Functions whose forward-mode formula in PyTorch is wrong, so that the fallback must never use it.

Each is here until it has a rule of ours; a rule entered for the function takes precedence. Checked on PyTorch 2.15.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fwdgrad.dual.tensor import DualError, name_of

KNOWN_WRONG: dict[Any, str] = {
    torch.cholesky_inverse: "use torch.cholesky_solve(torch.eye(n), L), or torch.linalg.inv(L @ L.mH)",
    torch.cholesky_solve: "use two torch.linalg.solve_triangular calls",
    torch.triangular_solve: "use torch.linalg.solve_triangular",
    torch.scatter_reduce: "use torch.scatter_add of logarithms, or torch.prod over a dimension",
}
KNOWN_WRONG |= {getattr(Tensor, f.__name__): remedy for f, remedy in list(KNOWN_WRONG.items())}
KNOWN_WRONG[Tensor.scatter_reduce_] = KNOWN_WRONG[torch.scatter_reduce]

WHERE: dict[str, str] = {
    "cholesky_inverse": "everywhere",
    "cholesky_solve": "where b.shape == L.shape[:-1], or where L or its tangent is not triangular",
    "triangular_solve": "with transpose or unitriangular, or where the tangent is not triangular",
    "scatter_reduce": "with reduce='prod'",
    "linalg.det": "at singular matrices, where it is 0 instead of tr(adj(A) dA), as in reverse mode",
    "linalg.svd": "with full_matrices=True, where the vectors past the last singular value have the tangent 0",
    "logcumsumexp": "for complex numbers: nan where their real parts are beyond some 700, 0 where they are below -700",
    "nn.functional.linear_cross_entropy": "in chunks, with options=LinearCrossEntropyOptions(batch_chunk_size=...)",
}
"""Where PyTorch's forward mode is wrong without saying so, by name in ``torch``; ours is right in all these places."""


def make_refusal(function: Any, remedy: str) -> Callable[..., Any]:
    """Return a handler that raises, naming the function and what to use instead."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise DualError(
            f"{name_of(function)}: PyTorch's forward-mode formula for it is wrong and fwdgrad has no rule of its own; "
            f"{remedy}, or write a rule with @fwdgrad.dual.rule"
        )

    return refuse
