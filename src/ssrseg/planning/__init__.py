"""What a run will need, before it runs: parameters, FLOPs, memory, time, and what to change if it does not fit."""

from ssrseg.planning.plan import Plan, plan
from ssrseg.planning.tables import plan_tables

__all__ = ["Plan", "plan", "plan_tables"]
