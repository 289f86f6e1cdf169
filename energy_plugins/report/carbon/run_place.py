"""Where a run was: kept in its report by the run itself, as it was configured, and asked for again for its carbon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from energy_plugins.config import KEYS, ReportConfig, effective
from energy_plugins.config.given import Given
from energy_plugins.config.sources import merged
from energy_plugins.errors import ConfigError
from energy_plugins.report.carbon.circumstances import Circumstances
from energy_plugins.report.carbon.footprint import Footprint, footprint
from energy_plugins.report.carbon.grid import placed

if TYPE_CHECKING:
    from energy_plugins.measure.json_section import JSON
    from energy_plugins.measure.report import Report

PLACE: Final = "place"
"""Key of `Report.config`."""
_NAMES: Final = ("country", "carbon_intensity_g_per_kwh", "pue")
"""Of the configuration's section ``report``, and of the values below that key."""


def kept(config: ReportConfig) -> dict[str, JSON]:
    """Return what a run keeps of its place in its report's ``config``: nothing if none is configured."""
    if config.country is None and config.carbon_intensity_g_per_kwh is None:
        return {}
    return {PLACE: {name: getattr(config, name) for name in _NAMES}}


def settings_of(report: Report) -> ReportConfig:
    """Return what is configured of a run's place: by its report, or else by this process's configuration.

    Raises:
        ConfigError: a value is not allowed.
    """
    own = report.config.get(PLACE)
    if not isinstance(own, Mapping):
        return effective().config.report
    known = [(f"report.{name}", own[name]) for name in _NAMES if own.get(name) is not None]
    given = [Given.of(KEYS[dotted], value, "the place in the report") for dotted, value in known]
    return merged(given).config.report


def circumstances_of(config: ReportConfig) -> Circumstances:
    """Return where runs are that are so configured. Raises ConfigError, for an unknown country say."""
    return Circumstances(location=placed(config.country, config.carbon_intensity_g_per_kwh), pue=config.pue)


def usual_footprint(report: Report) -> Footprint:
    """Return what a run meant where nobody says more than what is configured of its place.

    A place that is not allowed is the reason why there are no grams: a page is no place for errors about it.
    """
    try:
        return footprint(report, circumstances_of(settings_of(report)))
    except ConfigError as error:
        return replace(footprint(report, Circumstances()), reason=str(error))
