"""Searches that spend less energy on the same training: pure functions that say what to try next, and their drivers."""

from energy_plugins.tune.decision import LimitChoice
from energy_plugins.tune.measurement import Measurement, Window, of_all_ranks
from energy_plugins.tune.objective import Energy, EnergyDelay, Objective, ZeusCost
from energy_plugins.tune.power_limit import Clocks, PowerLimitChoice, search, search_power_limit
from energy_plugins.tune.search import Action, Done, LimitSearch, Measure, begin, chosen, step
from energy_plugins.tune.task import Task

__all__ = [
    "Action",
    "Clocks",
    "Done",
    "Energy",
    "EnergyDelay",
    "LimitChoice",
    "LimitSearch",
    "Measure",
    "Measurement",
    "Objective",
    "PowerLimitChoice",
    "Task",
    "Window",
    "ZeusCost",
    "begin",
    "chosen",
    "of_all_ranks",
    "search",
    "search_power_limit",
    "step",
]
