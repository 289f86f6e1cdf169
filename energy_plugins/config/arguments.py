"""The configuration as flags of other programs' parsers: argparse's, and transformers' HfArgumentParser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from energy_plugins.config.file import read_file
from energy_plugins.config.given import Given
from energy_plugins.config.schema import FILE_FLAG, FILE_VARIABLE, KEYS, EnergyConfig
from energy_plugins.config.sources import Effective, from_environment, merged

_FILE_HELP = "A YAML file with the configuration of energy-plugins."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this package to a parser; `flags_of` finds them in what it parsed."""
    group = parser.add_argument_group("energy", "Measuring the energy of the training (energy-plugins).")
    group.add_argument(FILE_FLAG, "--energy_config", metavar="FILE", help=_FILE_HELP)
    for key in KEYS.values():
        group.add_argument(key.flag, f"--{key.argument}", metavar=key.kind.placeholder, help=key.help)


def flags_of(parsed: argparse.Namespace) -> tuple[str, ...]:
    """Return the flags of `add_flags` that were given, as `effective` takes them."""
    names = {"energy_config": FILE_FLAG} | {key.argument: key.flag for key in KEYS.values()}
    given = {flag: getattr(parsed, name) for name, flag in names.items()}
    return tuple(f"{flag}={text}" for flag, text in given.items() if text is not None)


@dataclass(frozen=True)
class _Flag:
    """A value that was given on a command line, which is to be told from one that was not."""

    value: object


class _Store(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        setattr(namespace, self.dest, _Flag(values))


def _of(dotted: str) -> Mapping[str, object]:
    """Return the metadata of a field: HfArgumentParser passes all of it to argparse."""
    return {"help": KEYS[dotted].help, "action": _Store}


@dataclass
class EnergyArguments:
    """The configuration as a dataclass of `transformers.HfArgumentParser`: from flags, YAML, JSON or a dict.

    None is not given. `config` returns what counts: flags above the environment, that above the other values given
    here, which come of a file as a rule, and those above the file ``energy_config``.

    Example::

        parser = HfArgumentParser((TrainingArguments, EnergyArguments))
        training, energy = parser.parse_args_into_dataclasses()
        energy.config().measure.activity
    """

    energy_config: str | None = field(default=None, metadata={"help": _FILE_HELP, "action": _Store})
    energy_measure_enabled: bool | None = field(default=None, metadata=_of("measure.enabled"))
    energy_measure_devices: Sequence[int | str] | str | None = field(default=None, metadata=_of("measure.devices"))
    energy_measure_phases_every_n_steps: int | None = field(default=None, metadata=_of("measure.phases_every_n_steps"))
    energy_measure_activity: bool | None = field(default=None, metadata=_of("measure.activity"))
    energy_measure_power_sensor: str | None = field(default=None, metadata=_of("measure.power_sensor"))
    energy_measure_energy_budget_kwh: float | None = field(default=None, metadata=_of("measure.energy_budget_kwh"))
    energy_report_folder: str | None = field(default=None, metadata=_of("report.folder"))
    energy_report_name: str | None = field(default=None, metadata=_of("report.name"))
    energy_report_log: bool | None = field(default=None, metadata=_of("report.log"))
    energy_report_progress_bar: bool | None = field(default=None, metadata=_of("report.progress_bar"))
    energy_report_table: bool | None = field(default=None, metadata=_of("report.table"))
    energy_report_country: str | None = field(default=None, metadata=_of("report.country"))
    energy_report_carbon_intensity_g_per_kwh: float | None = field(
        default=None, metadata=_of("report.carbon_intensity_g_per_kwh")
    )
    energy_report_pue: float | None = field(default=None, metadata=_of("report.pue"))
    energy_report_ledger: bool | None = field(default=None, metadata=_of("report.ledger"))
    energy_report_project: str | None = field(default=None, metadata=_of("report.project"))
    energy_report_prometheus_port: int | None = field(default=None, metadata=_of("report.prometheus_port"))
    energy_report_prometheus_address: str | None = field(default=None, metadata=_of("report.prometheus_address"))
    energy_report_json_lines: str | None = field(default=None, metadata=_of("report.json_lines"))
    energy_report_opentelemetry: bool | None = field(default=None, metadata=_of("report.opentelemetry"))
    energy_power_limit_enabled: bool | None = field(default=None, metadata=_of("power_limit.enabled"))
    energy_power_limit_max_slowdown: float | None = field(default=None, metadata=_of("power_limit.max_slowdown"))
    energy_power_limit_objective: str | None = field(default=None, metadata=_of("power_limit.objective"))
    energy_power_limit_eta: float | None = field(default=None, metadata=_of("power_limit.eta"))
    energy_power_limit_fixed: float | None = field(default=None, metadata=_of("power_limit.fixed"))
    energy_power_limit_knob: str | None = field(default=None, metadata=_of("power_limit.knob"))
    energy_power_limit_clocks_unlocked: bool | None = field(default=None, metadata=_of("power_limit.clocks_unlocked"))
    energy_power_limit_search_share: float | None = field(default=None, metadata=_of("power_limit.search_share"))
    energy_power_limit_host_power_w: float | None = field(default=None, metadata=_of("power_limit.host_power_w"))
    energy_micro_batch_enabled: bool | None = field(default=None, metadata=_of("micro_batch.enabled"))
    energy_micro_batch_size: int | None = field(default=None, metadata=_of("micro_batch.size"))
    energy_micro_batch_search_share: float | None = field(default=None, metadata=_of("micro_batch.search_share"))
    energy_micro_batch_allow_batch_statistics: bool | None = field(
        default=None, metadata=_of("micro_batch.allow_batch_statistics")
    )
    energy_micro_batch_effective_batch: str | None = field(default=None, metadata=_of("micro_batch.effective_batch"))
    energy_micro_batch_max_effective_batch: int | None = field(
        default=None, metadata=_of("micro_batch.max_effective_batch")
    )
    energy_micro_batch_learning_rate_rule: str | None = field(
        default=None, metadata=_of("micro_batch.learning_rate_rule")
    )

    def __post_init__(self) -> None:
        flagged = {one.name: getattr(self, one.name) for one in fields(self)}
        flagged = {name: value for name, value in flagged.items() if isinstance(value, _Flag)}
        for name, flag in flagged.items():
            setattr(self, name, flag.value)
        self._flagged = frozenset(flagged)

    def config(self, environ: Mapping[str, str] | None = None) -> EnergyConfig:
        """Return the configuration that counts. Raises ConfigError, see `effective`."""
        return self.effective(environ).config

    def effective(self, environ: Mapping[str, str] | None = None) -> Effective:
        """Return the configuration that counts, and where each value came from. Raises ConfigError."""
        environ = os.environ if environ is None else environ
        named, by_variable = self.energy_config, environ.get(FILE_VARIABLE)
        file = named if "energy_config" in self._flagged else by_variable or named
        return merged(
            read_file(file) or () if file else (),
            self._given(flagged=False),
            from_environment(environ),
            self._given(flagged=True),
        )

    def _given(self, *, flagged: bool) -> Iterator[Given]:
        for key in KEYS.values():
            value = getattr(self, key.argument)
            if value is not None and (key.argument in self._flagged) is flagged:
                yield Given.of(key, value, f"flag {key.flag}" if flagged else f"argument {key.argument}")
