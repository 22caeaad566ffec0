"""Write docs/coverage.md: how the dual engine serves each of PyTorch's operators.

python scripts/operator_coverage.py                 all sample inputs (minutes)
python scripts/operator_coverage.py --samples 4     four of each entry and dtype
python scripts/operator_coverage.py --match scatter --output -
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "dual")]


def main(arguments: list[str]) -> int:
    """Examine the entries and write the page; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--samples", type=int, default=None, help="sample inputs of each entry and dtype (default: all)"
    )
    parser.add_argument("--match", default="", help="only entries whose name contains this")
    parser.add_argument("--output", default=str(ROOT / "docs" / "coverage.md"), help="where to write; - prints")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from op_db import examine, name_of
        from op_report import render
        from op_samples import entries
    reports = []
    for op in entries():
        if options.match in name_of(op):
            reports.append(examine(op, options.samples, forward=True))
            print(f"{reports[-1].name}: {reports[-1].status}", file=sys.stderr)
    given = [] if options.samples is None else ["--samples", str(options.samples)]
    given += ["--match", options.match] if options.match else []
    command = shlex.join(["python", "scripts/operator_coverage.py", *given])
    samples = "all sample inputs" if options.samples is None else f"{options.samples} sample inputs of each dtype"
    page = render(reports, command, samples)
    if options.output == "-":
        print(page)
    else:
        Path(options.output).write_text(page)
    return int(any(report.status == "FAIL" for report in reports))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
