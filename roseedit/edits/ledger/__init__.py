"""A crash-safe history of the edits of one model: what was made, applied, reverted, rejected or consolidated."""

from roseedit.edits.ledger.chain import Fault, Standing
from roseedit.edits.ledger.ledger import Ledger
from roseedit.edits.ledger.plans import Plan
from roseedit.edits.ledger.recovery import Report

__all__ = ["Fault", "Ledger", "Plan", "Report", "Standing"]
