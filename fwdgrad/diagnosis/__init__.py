"""The doctor: compares a model's derivatives by every engine, and names what would keep it from being trained."""

from fwdgrad.diagnosis.check import check_model
from fwdgrad.diagnosis.report import Finding, MethodLine, Report

__all__ = ["Finding", "MethodLine", "Report", "check_model"]
