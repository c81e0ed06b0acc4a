"""Needs of a run, before it runs: parameters, FLOPs, memory, time, and what to change if it does not fit."""

from ssrseg.planning.plan import Plan, plan, plan_tables, what_to_change
from ssrseg.planning.recipes import licences, needs_of_preset
from ssrseg.planning.scaling import scaled

__all__ = ["Plan", "licences", "needs_of_preset", "plan", "plan_tables", "scaled", "what_to_change"]
