"""Minimise a test function by forward gradient and by backpropagation: ``global_optim.py function=beale``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fwdgrad import global_optimization as optim
from fwdgrad.cli import hydra_main, register_schema
from fwdgrad.experiment import ConfigError
from fwdgrad.training.tracking import write_json

register_schema("global_optim_schema", optim.GlobalOptimConfig)


@hydra_main(config_name="global_optim")
def main(cfg: Any, folder: Path) -> float:
    """Compare, print the table, and leave the picture, the figures and TensorBoard's events in the run folder."""
    try:
        config: Any = OmegaConf.to_object(cfg)
        optim.check_config(config)
        problem = optim.make_problem(config.function)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(str(error)) from error

    total = config.iterations * (config.num_seeds + 1)
    with tqdm(total=total, unit="it", disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True) as bar:
        runs = optim.compare(problem, config, bar.update)
    summaries = optim.summarize(problem, runs, config.target)
    picture = folder / f"{problem.objective.name}.png"
    print(optim.table(problem, config, summaries), flush=True)
    write_json(folder / "metrics.json", optim.metrics(problem, config, summaries))
    optim.log_curves(problem.objective.name, runs, lambda name: SummaryWriter(str(folder / name)))
    optim.draw(problem, config, runs, picture)
    print(f"\npicture     {picture}\nfigures     {folder / 'metrics.json'}\ntensorboard --logdir {folder}")
    return summaries[0].final_value if summaries[0].final_value is not None else float("inf")


if __name__ == "__main__":
    main()
