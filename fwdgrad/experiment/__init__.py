"""From a configuration to objects (``building``) to a finished run (``running``)."""

from fwdgrad.experiment.building import make_estimator, make_model, make_trainer, prepare_model
from fwdgrad.experiment.checks import check_config
from fwdgrad.experiment.errors import ConfigError
from fwdgrad.experiment.running import check, diagnose, run

__all__ = [
    "ConfigError",
    "check",
    "check_config",
    "diagnose",
    "make_estimator",
    "make_model",
    "make_trainer",
    "prepare_model",
    "run",
]
