"""Forward-mode automatic differentiation from scratch, on plain tensors: no autograd, no graph, nothing kept.

``jvp`` has the signature of ``torch.func.jvp``; ``directional_derivatives`` takes K directions at once, dense or
structured (``fwdgrad.tangents``). Ordinary PyTorch code runs on it: a ``Dual`` is a tensor that carries K tangents and
that every operation passes through a table of rules. ``rule`` adds to that table; ``fwdgrad.dual.rules`` tells how.

What stops a tangent: ``detach()``, ``.data``, ``torch.no_grad()`` inside the function, and results that are integers or
booleans. What has no rule falls back, one operation at a time, to PyTorch's own forward mode, and says so once.
"""

from fwdgrad.dual import rules as rules
from fwdgrad.dual.api import directional_derivatives, jvp
from fwdgrad.dual.blocks import Blocks, even_blocks
from fwdgrad.dual.fallback import fallback_counts
from fwdgrad.dual.perturb import bypasses, keeps_blocks, perturb, perturbed, pushforward
from fwdgrad.dual.registry import rule
from fwdgrad.dual.reverse import grad, value_and_grad, vjp
from fwdgrad.dual.tape.linear_map import linear_map
from fwdgrad.dual.tape.table import transpose
from fwdgrad.dual.tensor import Dual, DualError, dual, tangent

__all__ = [
    "Blocks",
    "Dual",
    "DualError",
    "bypasses",
    "directional_derivatives",
    "dual",
    "even_blocks",
    "fallback_counts",
    "grad",
    "jvp",
    "keeps_blocks",
    "linear_map",
    "perturb",
    "perturbed",
    "pushforward",
    "rule",
    "tangent",
    "transpose",
    "value_and_grad",
    "vjp",
]
