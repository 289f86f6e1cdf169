"""One configuration for every way of starting a training: a file, the environment, flags, or arguments in code.

A key has one name: ``measure: {activity: true}`` in YAML is ``ENERGY_MEASURE_ACTIVITY=true`` in the environment,
``--energy-measure-activity true`` on a command line and ``EnergyArguments.energy_measure_activity`` in transformers.
Where several are given the strongest counts: arguments in code, then flags, the environment, the file, the default.
"""

from energy_plugins.config.arguments import EnergyArguments, add_flags, flags_of
from energy_plugins.config.schema import (
    FILE_VARIABLE,
    KEYS,
    EnergyConfig,
    Key,
    MeasureConfig,
    MicroBatchConfig,
    PowerLimitConfig,
    ReportConfig,
)
from energy_plugins.config.sources import (
    OTHER_VARIABLES,
    VARIABLES,
    Effective,
    effective,
    limit_asked,
    micro_batch_asked,
    to_environment,
)

__all__ = [
    "FILE_VARIABLE",
    "KEYS",
    "OTHER_VARIABLES",
    "VARIABLES",
    "Effective",
    "EnergyArguments",
    "EnergyConfig",
    "Key",
    "MeasureConfig",
    "MicroBatchConfig",
    "PowerLimitConfig",
    "ReportConfig",
    "add_flags",
    "effective",
    "flags_of",
    "limit_asked",
    "micro_batch_asked",
    "to_environment",
]
