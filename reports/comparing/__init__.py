"""Any two results beside each other, question by question: `python -m stages.compare`."""

from reports.comparing.model import Comparison, Flip, Group
from reports.comparing.paired import compare
from reports.comparing.sides import CompareError, Side, pairs
from reports.comparing.writing import as_json, write

__all__ = [
    "CompareError",
    "Comparison",
    "Flip",
    "Group",
    "Side",
    "as_json",
    "compare",
    "pairs",
    "write",
]
