"""From what was measured to what is said: the level, the words and the remedy of each kind of disagreement."""

from __future__ import annotations

from collections.abc import Sequence

from fwdgrad.dual.known_wrong import WHERE
from fwdgrad.model_check.compare import DIFFERENCE_TOLERANCE, Comparison
from fwdgrad.model_check.operations import Operation
from fwdgrad.model_check.report import Finding

_RULE = "write its tangent as a rule, @fwdgrad.dual.rule (examples/custom_rule.py)"
_NEITHER = f"{_RULE}; for engine=func, give a custom Function a jvp; engine=finite_difference needs neither"

KINDS: dict[str, tuple[str, str, str]] = {
    "dual refuses": ("problem", "unsupported by engine=dual", f"{_RULE}, or use engine=func"),
    "dual wrong": (
        "problem",
        "wrong in engine=dual",
        "correct the rule (@fwdgrad.dual.rule replaces it) or report it; use engine=func or engine=finite_difference",
    ),
    "func refuses": (
        "warning",
        "unsupported by torch.func.jvp",
        "use engine=dual, which has rules of its own",
    ),
    "func wrong": (
        "problem",
        "wrong in torch.func.jvp",
        "use engine=dual; engine=func would train on a wrong derivative",
    ),
    "func goes on": (
        "warning",
        "not cut in torch.func.jvp",
        "use engine=dual, which stops where backward() does; in your own code x.detach() stops both",
    ),
    "reverse refuses": (
        "note",
        "unsupported by reverse mode",
        "nothing, unless you compare with optimization=backprop",
    ),
    "reverse wrong": (
        "warning",
        "reverse mode differs",
        "forward mode agrees with central differences; distrust optimization=backprop on this model",
    ),
    "all differ": ("problem", "no two ways agree", "look for a discontinuity, or for values near overflow"),
    "cut": (
        "problem",
        "derivative cut",
        "keep the computation in PyTorch operations on tensors; if the cut is meant, say so by x.detach()",
    ),
    "falls back": ("note", "falls back to PyTorch's forward mode", f"works, but slower; {_RULE}"),
    "convention": ("note", "derivative by convention", "nothing: reverse mode and ours follow PyTorch's definition"),
}
"""From a verdict to (level, kind, remedy)."""


def of_operation(operation: Operation) -> list[Finding]:
    """Return what is to be said of one operation."""
    comparison = operation.comparison
    if comparison is None:
        return []
    verdicts = list(operation.verdicts)
    if "cut" in verdicts:  # one operation of PyTorch cuts nothing by accident: padding_idx, straight-through estimates
        verdicts = ["convention" if word == "cut" else word for word in verdicts]
        verdicts = ["func goes on" if word == "func wrong" else word for word in verdicts]
    if comparison.fallbacks and "dual" not in comparison.errors:
        verdicts.append("falls back")
    return [make(word, operation.name, tuple(operation.places), comparison) for word in verdicts]


def make(verdict: str, subject: str, places: Sequence[str], comparison: Comparison) -> Finding:
    """Return the finding of a verdict."""
    level, kind, remedy = KINDS[verdict]
    if verdict.endswith("refuses") and {"dual", "func"} <= set(comparison.errors):
        remedy = _NEITHER
    if verdict == "func wrong" and "dual" in comparison.errors:
        remedy = f"{_RULE}, and use engine=dual; engine=func would train on a wrong derivative"
    if verdict == "dual refuses" and comparison.func_differences > DIFFERENCE_TOLERANCE:
        remedy = f"{_RULE}; engine=func is wrong here"
    return Finding(level, kind, subject, tuple(places), _text(verdict, subject, comparison), remedy)


def _text(verdict: str, subject: str, c: Comparison) -> str:
    if verdict.endswith("refuses"):
        return first_line(c.errors[verdict.split()[0]])
    if verdict == "dual wrong":
        error = c.value if c.value > c.dual_reverse else c.dual_reverse
        what = "its value" if c.value > c.dual_reverse else "its tangent"
        return f"{what} differs from reverse mode by {error:.1e}, from central differences by {c.dual_differences:.1e}"
    if verdict == "func wrong":
        known = WHERE.get(subject.removeprefix("torch.").removeprefix("Tensor.").removesuffix("_"))
        listed = f"; known to be wrong in PyTorch {known}" if known else ""
        return (
            f"its tangent differs from central differences by {c.func_differences:.1e}"
            + (f", from engine=dual by {c.dual_func:.1e}" if "dual" not in c.errors else "")
            + listed
        )
    if verdict == "func goes on":
        return (
            f"torch.func.jvp gives a derivative where reverse mode and engine=dual have none ({c.dual_func:.1e} apart)"
        )
    if verdict == "reverse wrong":
        return f"reverse mode differs from engine=dual by {c.dual_reverse:.1e}, which agrees with central differences"
    if verdict == "all differ":
        return (
            f"engine=dual differs from reverse mode by {c.dual_reverse:.1e}, and central differences from both "
            f"({c.dual_differences:.1e}, {c.reverse_differences:.1e})"
        )
    if verdict == "falls back":
        return f"no rule in fwdgrad.dual for {', '.join(c.fallbacks)}"
    return f"reverse mode and engine=dual agree, central differences are {c.dual_differences:.1e} away"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
