"""Searches that spend less energy on the same training: pure functions that say what to try next, and their drivers."""

from energy_plugins.tune.effective_batch import EffectiveBatchOutlook, GrowthPlan, effective_batch_outlook, grow
from energy_plugins.tune.joint import search_jointly
from energy_plugins.tune.joint_choice import JointChoice
from energy_plugins.tune.learning_rate import LearningRateRule, rule_of, rule_to_try
from energy_plugins.tune.limit.decision import LimitChoice
from energy_plugins.tune.limit.driver import Clocks, PowerLimitChoice, search, search_power_limit
from energy_plugins.tune.limit.measurement import Measurement, Window, of_all_ranks
from energy_plugins.tune.limit.objective import Energy, EnergyDelay, Objective, ZeusCost
from energy_plugins.tune.limit.search import Action, Done, LimitSearch, Measure, begin, chosen, step
from energy_plugins.tune.limit.task import Task
from energy_plugins.tune.memory_hierarchy import Level, MemoryHierarchy
from energy_plugins.tune.micro_batch.fixed_cost import FixedCost
from energy_plugins.tune.micro_batch.search import (
    Memory,
    MicroBatchChoice,
    MicroBatchTask,
    OutOfMemory,
    Refused,
    TriedSize,
    candidates,
    search_micro_batch,
)
from energy_plugins.tune.sweep.batch_walk import BatchWalk
from energy_plugins.tune.sweep.energy_to_target import Evaluation, SweepTraining, search_energy_to_target
from energy_plugins.tune.sweep.trials import Sweep, SweepTrial
from energy_plugins.tune.working_set import Part, WorkingSet

__all__ = [
    "Action",
    "BatchWalk",
    "Clocks",
    "Done",
    "EffectiveBatchOutlook",
    "Energy",
    "EnergyDelay",
    "Evaluation",
    "FixedCost",
    "GrowthPlan",
    "JointChoice",
    "LearningRateRule",
    "Level",
    "LimitChoice",
    "LimitSearch",
    "Measure",
    "Measurement",
    "Memory",
    "MemoryHierarchy",
    "MicroBatchChoice",
    "MicroBatchTask",
    "Objective",
    "OutOfMemory",
    "Part",
    "PowerLimitChoice",
    "Refused",
    "Sweep",
    "SweepTraining",
    "SweepTrial",
    "Task",
    "TriedSize",
    "Window",
    "WorkingSet",
    "ZeusCost",
    "begin",
    "candidates",
    "chosen",
    "effective_batch_outlook",
    "grow",
    "of_all_ranks",
    "rule_of",
    "rule_to_try",
    "search",
    "search_energy_to_target",
    "search_jointly",
    "search_micro_batch",
    "search_power_limit",
    "step",
]
