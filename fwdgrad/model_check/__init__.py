"""The doctor: compares a model's derivatives by every engine, and names what would keep it from being trained."""

from fwdgrad.model_check.check import check_model
from fwdgrad.model_check.report import Finding, MethodLine, Report

__all__ = ["Finding", "MethodLine", "Report", "check_model"]
