"""Minimise a function of a few variables by forward gradient and by backpropagation, side by side."""

from fwdgrad.global_optimization.config import FunctionConfig, GlobalOptimConfig
from fwdgrad.global_optimization.descent import Descent, Run, check_config, compare
from fwdgrad.global_optimization.picture import draw
from fwdgrad.global_optimization.problem import Problem, make_problem
from fwdgrad.global_optimization.report import Summary, log_curves, metrics, summarize, table

__all__ = [
    "Descent",
    "FunctionConfig",
    "GlobalOptimConfig",
    "Problem",
    "Run",
    "Summary",
    "check_config",
    "compare",
    "draw",
    "log_curves",
    "make_problem",
    "metrics",
    "summarize",
    "table",
]
