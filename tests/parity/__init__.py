"""Checks against numbers that the original implementations produced: one function per kind of case.

A case says everything about itself: nothing here depends on which case it is.
"""

from parity.cases import Case, Same, Unsupported, read_cases
from parity.kinds import KINDS, Kind, measure

__all__ = ["KINDS", "Case", "Kind", "Same", "Unsupported", "measure", "read_cases"]
