"""The coverage of PyTorch's operators as a page: totals, and a row for each entry of the operator database."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
from op_db import Report

_WORDS = {"rule": "rule", "fallback": "fallback", "refused": "refused", "FAIL": "**FAIL**", "untested": "not tested"}


_PAGE = """\
# Coverage of PyTorch's operators by the dual engine

Every entry of PyTorch's own operator database that is differentiable in float64 or complex128 on the CPU is evaluated
on PyTorch's sample inputs, as a function, as a method and in place. The tangents along two random directions are
compared with reverse mode, `<u, Jv> = <J'u, v>`, and with central differences where reverse mode fails or differs; each
input is also differentiated with the others plain. The error is relative to the sum of the sizes of the terms of the
inner product. A rule wrong by 0.1 % is reported as FAIL (`tests/dual/test_op_db.py` proves it).

{made}

| {entries} entries | count | meaning |
| --- | ---: | --- |
| rule | {rule} | right on every sample, by rules of ours |
| fallback | {fallback} | right on every sample, at least once by PyTorch's forward mode |
| refused | {refused} | at least one sample raises `DualError`, all others are right |
| FAIL | {FAIL} | a wrong tangent, or another error |
| not tested | {untested} | no sample has a dense input to differentiate by |

The worst error of a right answer is {worst}. PyTorch's own forward mode, on the same samples: {supported} supported,
{refuses} refused, {wrong} wrong.

| operator | fwdgrad | worst error | calls | PyTorch's forward mode | notes |
| --- | --- | ---: | ---: | --- | --- |
{rows}
"""


def render(reports: Sequence[Report], command: str, samples: str) -> str:
    """Return the page in Markdown.

    Args:
        reports: one for each entry.
        command: that makes the page.
        samples: which sample inputs were taken.
    """
    ours = collections.Counter(report.status for report in reports)
    theirs = collections.Counter(report.forward for report in reports)
    used = sum(report.samples for report in reports)
    worst = max((report.error for report in reports), default=0.0)
    rows = "\n".join(_row(report) for report in sorted(reports, key=lambda report: report.name))
    return _PAGE.format(
        made=f"Made by `{command}` with PyTorch {torch.__version__.split('+')[0]}: {samples}, {used:,} calls.",
        entries=len(reports),
        worst=f"{worst:.0e}",
        rows=rows,
        **{status: ours[status] for status in _WORDS},
        **{kind: theirs[kind] for kind in ("supported", "refuses", "wrong")},
    )


def _row(report: Report) -> str:
    notes = []
    if report.fallbacks:
        notes.append("falls back at " + ", ".join(f"`{name.rpartition('.')[2]}`" for name in sorted(report.fallbacks)))
    if report.refused:
        notes.append(f"refuses {report.refused} of {report.samples}: {report.notes[0]}")
    elif report.status == "FAIL":
        notes.append("; ".join(report.notes[:2]))
    if report.undecided:
        notes.append(f"{report.undecided} derivatives are not finite in any mode")
    theirs = {"wrong": "**wrong**", "untested": "not tested"}.get(report.forward, report.forward)
    text = "; ".join(notes).replace("|", "\\|").replace("\n", " ")
    error = f"{report.error:.0e}" if report.samples else ""
    return f"| `{report.name}` | {_WORDS[report.status]} | {error} | {report.samples} | {theirs} | {text} |"
