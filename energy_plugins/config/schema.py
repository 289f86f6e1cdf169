"""What can be configured: the sections, their keys, and each key's help, default and allowed values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from energy_plugins.config.values import (
    AT_LEAST_ONE,
    COUNT,
    DEVICES,
    NOT_NEGATIVE,
    PORT,
    POSITIVE,
    SHARE,
    TEXT,
    WHOLE,
    YES_NO,
    Kind,
    Value,
    one_of,
    shown,
)
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
    country: str | None = field(
        default=None,
        metadata=_key(TEXT, "Where trainings run, a country's name or code: without it there are no grams of carbon."),
    )
    carbon_intensity_g_per_kwh: float | None = field(
        default=None,
        metadata=_key(NOT_NEGATIVE, "The carbon intensity of your electricity, instead of the country's mean."),
    )
    pue: float = field(
        default=1.0,
        metadata=_key(AT_LEAST_ONE, "What the building draws for each joule that its computers draw, for carbon."),
    )
    ledger: bool = field(
        default=True, metadata=_key(YES_NO, "Whether runs are kept in this user's ledger, on this machine.")
    )
    project: str | None = field(
        default=None,
        metadata=_key(
            TEXT,
            "What the ledger books runs on; if not given, the name of the git repository or folder a training runs in.",
        ),
    )
    prometheus_port: int | None = field(
        default=None,
        metadata=_key(PORT, "Where Prometheus may scrape the figures while a run goes; rank k of a machine adds k."),
    )
    prometheus_address: str = field(
        default="127.0.0.1",
        metadata=_key(TEXT, "The address of that port; this machine alone may ask if it is not given."),
    )
    json_lines: str | None = field(
        default=None, metadata=_key(TEXT, "A file or pipe that gets the figures as a line of JSON, once a second.")
    )
    opentelemetry: bool = field(
        default=False, metadata=_key(YES_NO, "Whether to send the figures by OTLP; OTEL_* variables say where to.")
    )


OBJECTIVE = one_of("energy", "energy_delay", "zeus")
KNOB = one_of("limit", "clocks", "auto")


@dataclass(frozen=True, kw_only=True)
class PowerLimitConfig(_Section):
    """Whether the power of the GPUs is limited during a training, and how. Raises ConfigError as `MeasureConfig`."""

    enabled: bool = field(
        default=False,
        metadata=_key(YES_NO, "Whether to limit the GPUs' power; if not given, as soon as another of these keys is."),
    )
    max_slowdown: float = field(
        default=0.03, metadata=_key(NOT_NEGATIVE, "By what share a step may take longer than at the limit found.")
    )
    objective: str = field(
        default="energy",
        metadata=_key(OBJECTIVE, "What to make small: joules, joules times seconds, or the cost of Zeus."),
    )
    eta: float = field(
        default=0.5, metadata=_key(SHARE, "The weight of energy in the cost of Zeus; that of time is the rest.")
    )
    fixed: float | None = field(
        default=None,
        metadata=_key(POSITIVE, "The power limit to set, in watts for each GPU; none is searched for."),
    )
    knob: str = field(
        default="limit",
        metadata=_key(KNOB, "What to turn: the power limit, locked clocks, or these where no limit binds."),
    )
    clocks_unlocked: bool = field(
        default=False,
        metadata=_key(YES_NO, "You assert that nobody has locked the clocks, which cannot be read; clocks need it."),
    )
    search_share: float = field(
        default=0.05, metadata=_key(SHARE, "The most of the planned training that may pass while limits are tried.")
    )
    host_power_w: float = field(
        default=0.0,
        metadata=_key(NOT_NEGATIVE, "What each machine draws beside its GPUs, in watts: slower steps cost that, too."),
    )


EFFECTIVE_BATCH = one_of("keep", "grow")
LEARNING_RATE_RULE = one_of("linear", "sqrt", "none")


@dataclass(frozen=True, kw_only=True)
class MicroBatchConfig(_Section):
    """How many samples go through the model at once, with the same gradients. Raises ConfigError as `MeasureConfig`."""

    enabled: bool = field(
        default=False,
        metadata=_key(YES_NO, "Whether to tune the micro-batch; if not given, as soon as another of these keys is."),
    )
    size: int | None = field(
        default=None,
        metadata=_key(WHOLE, "The samples that go through the model at once; none is searched for."),
    )
    search_share: float = field(
        default=0.05, metadata=_key(SHARE, "The most of the planned training that may pass while sizes are tried.")
    )
    allow_batch_statistics: bool = field(
        default=False,
        metadata=_key(YES_NO, "Whether a model may be tuned whose results depend on the micro-batch, as BatchNorm's."),
    )
    effective_batch: str = field(
        default="keep",
        metadata=_key(EFFECTIVE_BATCH, "Whether steps keep their samples, or get more: another training."),
    )
    max_effective_batch: int | None = field(
        default=None,
        metadata=_key(WHOLE, "The most samples of an optimizer step, of all ranks, where it may grow."),
    )
    learning_rate_rule: str = field(
        default="none",
        metadata=_key(LEARNING_RATE_RULE, "How the learning rate follows an effective batch that grows."),
    )


@dataclass(frozen=True, kw_only=True)
class EnergyConfig:
    """How a training is measured and reported.

    Attributes:
        measure: what is measured, and how.
        report: where the figures go.
        power_limit: whether the power of the GPUs is limited, and how.
        micro_batch: whether the micro-batch is tuned, and how.
    """

    measure: MeasureConfig = field(default_factory=MeasureConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    power_limit: PowerLimitConfig = field(default_factory=PowerLimitConfig)
    micro_batch: MicroBatchConfig = field(default_factory=MicroBatchConfig)

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


SECTIONS: Mapping[str, type[MeasureConfig | ReportConfig | PowerLimitConfig | MicroBatchConfig]] = MappingProxyType(
    {
        "measure": MeasureConfig,
        "report": ReportConfig,
        "power_limit": PowerLimitConfig,
        "micro_batch": MicroBatchConfig,
    }
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

ASKED_FOR: Mapping[str, Key] = MappingProxyType(
    {section: KEYS[f"{section}.enabled"] for section in ("power_limit", "micro_batch")}
)
"""What changes a training, by section: asked for by naming the section, or any other of its keys."""

FILE_VARIABLE, FILE_FLAG = "ENERGY_CONFIG", "--energy-config"
"""What names a file; no key."""
