"""What can be configured: the sections, their keys, and each key's help, default and allowed values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from energy_plugins.config.values import COUNT, DEVICES, POSITIVE, TEXT, YES_NO, Kind, Value, shown
from energy_plugins.errors import ConfigError


def _key(kind: Kind, help_text: str) -> Mapping[str, object]:
    return {"kind": kind, "help": help_text}


def _checked(section: object, name: str, given: object, one: Field[Any]) -> Value | None:
    if given is None and one.default is None:
        return None
    kind: Kind = one.metadata["kind"]
    try:
        return kind.read(given)
    except ValueError as error:
        message = f"{type(section).__name__}: {name} is {shown(given)}; expected {kind.expected}"
        raise ConfigError(message) from error


class _Section:
    """Checks the values it is made with; those that come from outside have been checked where they came from."""

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type] # what inherits is a dataclass
            object.__setattr__(self, one.name, _checked(self, one.name, getattr(self, one.name), one))


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(_Section):
    """What is measured, and how. Raises ConfigError for a value that is not allowed."""

    enabled: bool = field(default=True, metadata=_key(YES_NO, "Whether to measure at all."))
    devices: tuple[int | str, ...] | None = field(
        default=None,
        metadata=_key(DEVICES, "The GPUs to measure; if not given, those that each process trains on."),
    )
    phases_every_n_steps: int = field(
        default=50,
        metadata=_key(COUNT, "Mark forward, backward and optimizer in every n-th optimizer step; 0 never does."),
    )
    activity: bool = field(
        default=False,
        metadata=_key(YES_NO, "Whether to read once a second how busy the GPU's parts are (Hopper and newer)."),
    )
    power_sensor: str | None = field(
        default=None, metadata=_key(TEXT, "The power sensor to use instead of the best one, by its name in a report.")
    )
    energy_budget_kwh: float | None = field(
        default=None,
        metadata=_key(POSITIVE, "The most that a training may draw on the GPUs of all ranks, in kilowatt-hours."),
    )


@dataclass(frozen=True, kw_only=True)
class ReportConfig(_Section):
    """Where the figures go. Raises ConfigError for a value that is not allowed."""

    folder: str | None = field(
        default=None,
        metadata=_key(
            TEXT,
            "Where reports go, a folder NAME-1, NAME-2, ... for each run; if not given, energy/ in the "
            "training's own output folder.",
        ),
    )
    name: str | None = field(default=None, metadata=_key(TEXT, "What runs are called; run if not given."))
    log: bool = field(default=True, metadata=_key(YES_NO, "Whether to send the figures to the training's loggers."))
    progress_bar: bool = field(
        default=True, metadata=_key(YES_NO, "Whether to show the joules in the progress bar, where there is one.")
    )
    table: bool = field(default=True, metadata=_key(YES_NO, "Whether to print the report as a table at the end."))


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """How a training is measured and reported.

    Attributes:
        measure: what is measured, and how.
        report: where the figures go.
    """

    measure: MeasureConfig = field(default_factory=MeasureConfig)
    report: ReportConfig = field(default_factory=ReportConfig)

    def values(self) -> Iterator[tuple[Key, Value | None]]:
        """Yield every key with its value."""
        for key in KEYS.values():
            yield key, getattr(getattr(self, key.section), key.name)


@dataclass(frozen=True)
class Key:
    """One thing that can be configured, and what it is called wherever that is done."""

    section: str
    name: str
    kind: Kind
    default: Value | None
    help: str

    @property
    def dotted(self) -> str:
        """``measure.activity``, as messages call it; in a file the parts stand one under the other."""
        return f"{self.section}.{self.name}"

    @property
    def argument(self) -> str:
        """``energy_measure_activity``, the field of `EnergyArguments`."""
        return f"energy_{self.section}_{self.name}"

    @property
    def variable(self) -> str:
        """``ENERGY_MEASURE_ACTIVITY``, in the environment."""
        return self.argument.upper()

    @property
    def flag(self) -> str:
        """``--energy-measure-activity``, on the command line."""
        return f"--{self.argument.replace('_', '-')}"


SECTIONS: Mapping[str, type[MeasureConfig | ReportConfig]] = MappingProxyType(
    {"measure": MeasureConfig, "report": ReportConfig}
)

KEYS: Mapping[str, Key] = MappingProxyType(
    {
        key.dotted: key
        for section, holder in SECTIONS.items()
        for one in fields(holder)
        for key in [Key(section, one.name, one.metadata["kind"], getattr(holder, one.name), one.metadata["help"])]
    }
)
"""By their dotted names."""

NOT_YET: Mapping[str, str] = MappingProxyType(
    {
        "power_limit": "this version of energy-plugins does not set power limits yet",
        "micro_batch": "this version of energy-plugins does not choose micro-batches yet",
    }
)
"""Sections to come. They are refused: who asks for one must not believe to have it."""

FILE_VARIABLE, FILE_FLAG = "ENERGY_CONFIG", "--energy-config"
"""What names a file; no key."""
