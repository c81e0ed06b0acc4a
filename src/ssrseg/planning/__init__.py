"""Needs of a run, before it runs: parameters, FLOPs, memory, time, and what to change if it does not fit."""

from ssrseg.planning.plan import (
    Plan as Plan,
    plan as plan,
    plan_tables as plan_tables,
    what_to_change as what_to_change,
)
from ssrseg.planning.recipes import licences as licences, needs_of_preset as needs_of_preset
from ssrseg.planning.scaling import scaled as scaled
