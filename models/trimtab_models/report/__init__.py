"""Validation reports: report.md, report.json and plots beside a checkpoint's weights.

python -m trimtab_models.report CHECKPOINT --rollouts FILE [--completions FILE]
"""

from trimtab_models.report.files import mark, update, write
from trimtab_models.report.rates import By, Rates, accuracy, value_mse
from trimtab_models.report.text import summary, warning
from trimtab_models.report.validate import Report, half_completed, validate

__all__ = [
    "By",
    "Rates",
    "Report",
    "accuracy",
    "half_completed",
    "mark",
    "summary",
    "update",
    "validate",
    "value_mse",
    "warning",
    "write",
]
