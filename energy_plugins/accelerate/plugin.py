"""How an accelerate training is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from energy_plugins.config import KEYS, EnergyConfig, effective


def _option(dotted: str) -> Any:  # noqa: ANN401 - as dataclasses.field
    return field(default=None, metadata={"key": dotted, "help": KEYS[dotted].help})


@dataclass
class EnergyPlugin:
    """How an accelerate training is measured. What is not given is taken from ``ENERGY_*`` or its file.

    After construction every field holds what counts; `config` is the same as a value.

    Raises:
        ConfigError: a value is not allowed, here or in the configuration. It is a ValueError.
    """

    enabled: bool | None = _option("measure.enabled")
    devices: Sequence[int | str] | None = _option("measure.devices")
    phases_every_n_steps: int | None = _option("measure.phases_every_n_steps")
    activity: bool | None = _option("measure.activity")
    power_sensor: str | None = _option("measure.power_sensor")
    folder: str | None = _option("report.folder")
    name: str | None = _option("report.name")
    log: bool | None = _option("report.log")
    table: bool | None = _option("report.table")
    country: str | None = _option("report.country")
    carbon_intensity_g_per_kwh: float | None = _option("report.carbon_intensity_g_per_kwh")
    pue: float | None = _option("report.pue")
    ledger: bool | None = _option("report.ledger")
    project: str | None = _option("report.project")
    prometheus_port: int | None = _option("report.prometheus_port")
    prometheus_address: str | None = _option("report.prometheus_address")
    json_lines: str | None = _option("report.json_lines")
    opentelemetry: bool | None = _option("report.opentelemetry")
    limit_power: bool | None = _option("power_limit.enabled")
    max_slowdown: float | None = _option("power_limit.max_slowdown")
    objective: str | None = _option("power_limit.objective")
    eta: float | None = _option("power_limit.eta")
    fixed_limit_w: float | None = _option("power_limit.fixed")
    knob: str | None = _option("power_limit.knob")
    clocks_unlocked: bool | None = _option("power_limit.clocks_unlocked")
    search_share: float | None = _option("power_limit.search_share")
    host_power_w: float | None = _option("power_limit.host_power_w")

    def __post_init__(self) -> None:
        given = {dotted: getattr(self, name) for name, dotted in OPTIONS.items()}
        self._config = effective(arguments=given).config
        for name, dotted in OPTIONS.items():
            section, _, key = dotted.partition(".")
            setattr(self, name, getattr(getattr(self._config, section), key))

    @property
    def config(self) -> EnergyConfig:
        """What counts, with the keys that have no field here."""
        return self._config


OPTIONS = {name: one.metadata["key"] for name, one in EnergyPlugin.__dataclass_fields__.items()}
"""The keys of its fields."""
