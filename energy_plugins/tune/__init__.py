"""Searches that spend less energy on the same training: pure functions that say what to try next, and their drivers."""

from energy_plugins.tune.decision import LimitChoice
from energy_plugins.tune.measurement import Measurement, Window, of_all_ranks
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy
from energy_plugins.tune.objective import Energy, EnergyDelay, Objective, ZeusCost
from energy_plugins.tune.power_limit import Clocks, PowerLimitChoice, search, search_power_limit
from energy_plugins.tune.search import Action, Done, LimitSearch, Measure, begin, chosen, step
from energy_plugins.tune.task import Task
from energy_plugins.tune.working_set import Part, WorkingSet

__all__ = [
    "Action",
    "Clocks",
    "Done",
    "Energy",
    "EnergyDelay",
    "Level",
    "LimitChoice",
    "LimitSearch",
    "Measure",
    "Measurement",
    "MemoryHierarchy",
    "Objective",
    "Part",
    "PowerLimitChoice",
    "Task",
    "Window",
    "WorkingSet",
    "ZeusCost",
    "begin",
    "chosen",
    "of_all_ranks",
    "search",
    "search_power_limit",
    "step",
]
