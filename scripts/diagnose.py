"""Compare a method's estimates with the exact gradient: ``diagnose.py model=mlp_small optimization=activity``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fwdgrad import experiment
from fwdgrad.cli import hydra_main


@hydra_main(config_name="train", resumable=False)
def main(cfg: Any, folder: Path) -> float:
    """Print the table, and leave a picture in the run folder; the objective of a sweep is the cosine."""
    diagnosis = experiment.diagnose(cfg, folder)
    print(f"{cfg.name}: {cfg.diagnose_samples} estimates of one batch's gradient\n\n{diagnosis}", flush=True)
    print(f"\npicture     {folder / 'diagnosis.png'}")
    return diagnosis.total.cosine


if __name__ == "__main__":
    main()
