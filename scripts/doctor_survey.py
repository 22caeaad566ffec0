"""Write docs/results/doctor.md: what the doctor says of models that nobody here wrote.

python scripts/doctor_survey.py                       all of them (half an hour)
python scripts/doctor_survey.py --match detection     these; the page's other rows stay as they are
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main(arguments: list[str]) -> int:
    """Check the models one after another and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--match", default="", help="only models whose name contains this")
    parser.add_argument(
        "--output", default=str(ROOT / "docs" / "results" / "doctor.md"), help="where to write; - prints"
    )
    parser.add_argument("--verbose", action="store_true", help="print each report")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from doctor_models import MODELS
    from doctor_page import page, read_rows, survey, table_row

    target = None if options.output == "-" else Path(options.output)
    rows = read_rows(target.read_text()) if options.match and target is not None and target.exists() else {}
    for name, make in MODELS.items():
        if options.match in name:
            row = survey(name, make)
            rows[name] = table_row(row)
            print(row.line(), file=sys.stderr, flush=True)
            if options.verbose and row.report is not None:
                print(row.report, file=sys.stderr, flush=True)
            if target is not None:
                target.write_text(page(rows, MODELS, "python scripts/doctor_survey.py"))
    if target is None:
        print(page(rows, MODELS, shlex.join(["python", "scripts/doctor_survey.py", *arguments])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
