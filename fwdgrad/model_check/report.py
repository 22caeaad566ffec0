"""What a check found, as plain objects and as text."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

LEVELS = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    ``level`` is "problem" (training would fail or be wrong), "warning" (a part of the choices fails, or something is
    probably not meant) or "note".
    """

    level: str
    kind: str
    """In a word or two, the same for all findings of the kind."""
    subject: str
    """The operation, parameter or module in question; empty where it is the model."""
    places: tuple[str, ...]
    """Names of the modules where it happens."""
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        shown = ", ".join(self.places[:3]) + (f" and {len(self.places) - 3} more" if len(self.places) > 3 else "")
        where = f" in {shown}" if shown else ""
        lines = [f"{self.level:<8} {self.kind}: {self.subject}{where}".rstrip(": "), f"         {self.text}"]
        return "\n".join([*lines, *([f"         do: {self.remedy}"] if self.remedy else [])])


@dataclass(frozen=True)
class MethodLine:
    """Whether a shipped method made a step with the model."""

    method: str
    works: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.method:<16} {'yes' if self.works else 'no '}  {self.reason}".rstrip()


@dataclass
class Report:
    """The outcome of ``check_model``; ``str(report)`` is a readable table, ``report.to_dict()`` goes into JSON."""

    model: str
    parameters: int
    """Number of trainable values."""
    loss: float
    derivatives: dict[str, float] = field(default_factory=dict)
    """The directional derivative of the loss by each way that has one: reverse, dual, func, differences."""
    operations: int = 0
    """How many distinct operations were compared one by one."""
    modules: int = 0
    """How many modules were compared by themselves."""
    findings: list[Finding] = field(default_factory=list)
    methods: list[MethodLine] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether no problem was found; warnings and notes may have been."""
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "problem"]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values; a number that is not finite becomes None, which JSON can say."""
        plain = asdict(self)
        plain["loss"] = _finite(self.loss)
        plain["derivatives"] = {way: _finite(value) for way, value in self.derivatives.items()}
        return {"ok": self.ok, **plain}

    def __str__(self) -> str:
        names = {"reverse": "reverse mode", "dual": "engine=dual", "func": "engine=func"}
        names["differences"] = "central differences"
        lines = [
            f"{self.model}: {self.parameters:,} trainable values, loss {self.loss:.6g}",
            f"compared in float64: the whole, {self.modules} modules, {self.operations} distinct operations "
            f"({self.seconds:.1f} s)",
            *(f"  {names[way]:<20} {self.derivatives[way]: .12g}" for way in names if way in self.derivatives),
            "",
        ]
        counts = [f"{len([f for f in self.findings if f.level == level])} {level}s" for level in LEVELS]
        lines.append(", ".join(counts))
        lines += [str(finding) for level in LEVELS for finding in self.findings if finding.level == level]
        if self.methods:
            lines += ["", "methods that can train it (optimization=)", *(f"  {line}" for line in self.methods)]
        return "\n".join([*lines, "", "healthy" if self.ok else "NOT healthy: see the problems above"])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
