"""A footprint as text, below the table of a report, and as JSON."""

from __future__ import annotations

import textwrap

from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.quantity import quantity
from energy_plugins.report.carbon.footprint import Emissions, Footprint
from energy_plugins.report.carbon.grid import Intensity
from energy_plugins.report.carbon.relatable import as_much_as
from energy_plugins.units import j_to_wh

WIDTH = 100
_LABEL = 14


def text_block(footprint: Footprint) -> str:
    """Return the footprint as lines, without a trailing newline."""
    found = entries(footprint)
    if footprint.simulated:
        found.insert(0, ("", "SIMULATED: what follows is of a simulated GPU"))
    return "\n".join(line for label, text in found for line in _entry(label, text))


def entries(footprint: Footprint) -> list[tuple[str, str]]:
    """Return what is known, a label and a sentence each; where there are no grams it says why."""
    return [*_electricity(footprint), ("carbon", _carbon(footprint)), *_others(footprint)]


def stamp(intensity: Intensity) -> str:
    """Return of where and when an intensity is, and who says so."""
    return ", ".join(str(one) for one in (intensity.place, intensity.year, intensity.source) if one)


def _electricity(footprint: Footprint) -> list[tuple[str, str]]:
    if footprint.gpu_j is None or footprint.kwh is None:
        return []
    parts = [f"GPUs {quantity(j_to_wh(footprint.gpu_j), 'Wh')}"]
    if footprint.host_j is not None:
        parts.append(f"CPU and DRAM {quantity(j_to_wh(footprint.host_j), 'Wh')}")
    least = "" if footprint.whole else "at least "
    whole = quantity(1e3 * footprint.kwh, "Wh")
    lines = [("electricity", f"{least}{whole} = ({' + '.join(parts)}) x PUE {footprint.pue:g}")]
    if footprint.cost is not None:
        lines.append(("cost", f"{footprint.cost:.4g} at {footprint.price_per_kwh:g} per kWh"))
    return lines


def _carbon(footprint: Footprint) -> str:
    if footprint.location is None:
        energy = "energy only, " if footprint.kwh is not None and footprint.marginal is None else ""
        return f"{energy}no grams: {footprint.reason or 'only a marginal intensity is known'}"
    return _grams(footprint.location)


def _grams(found: Emissions[Intensity]) -> str:
    return (
        f"{quantity(found.grams, 'g')} CO2e, {found.intensity.basis}, at {found.g_per_kwh:.4g} g/kWh "
        f"({stamp(found.intensity)})"
    )


def _others(footprint: Footprint) -> list[tuple[str, str]]:
    lines = []
    if footprint.marginal is not None:
        lines.append(
            ("marginal", f"{_grams(footprint.marginal)}; another question than carbon above: in no sum with it")
        )
    if footprint.embodied is not None and footprint.embodied_g is not None:
        made = footprint.embodied
        how = f"its share of {made.kg:g} kg over an assumed {made.lifetime_years:g} years"
        lines.append(("embodied", f"{quantity(footprint.embodied_g, 'g')} CO2e for making the hardware: {how}"))
    if footprint.scores:
        scores = ", ".join(f"{quantity(grams, 'g')} CO2e per {unit}" for unit, grams in footprint.scores.items())
        without = "" if footprint.embodied is not None else "; without embodied emissions, which nobody gave"
        lines.append(("SCI", f"{scores} (ISO/IEC 21031{without})"))
    grams = None if footprint.location is None else footprint.location.grams
    if things := as_much_as(footprint.kwh, grams):
        lines.append(("as much as", "; ".join(things)))
    return lines


def _entry(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:<{_LABEL}}", subsequent_indent=" " * _LABEL)


def as_json(footprint: Footprint) -> dict[str, JSON]:
    """Return the footprint as JSON has it; grams are of CO2 equivalent."""
    return {
        "simulated": footprint.simulated,
        "gpu_j": footprint.gpu_j,
        "host_j": footprint.host_j,
        "pue": footprint.pue,
        "kwh": footprint.kwh,
        "location_based": _emissions(footprint.location),
        "marginal": _emissions(footprint.marginal),
        "embodied_g": footprint.embodied_g,
        "sci_g": footprint.scores,
        "cost": footprint.cost,
        "price_per_kwh": footprint.price_per_kwh,
        "reason": footprint.reason,
    }


def _emissions(found: Emissions[Intensity] | None) -> JSON:
    if found is None:
        return None
    return {"grams": found.grams, "g_per_kwh": found.g_per_kwh, "source": stamp(found.intensity)}
