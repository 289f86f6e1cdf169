"""Trees of energy counters as people have shown theirs: names, ranges and readings of real machines.

What was shown is a fact of that machine: its zones, their names, ``max_energy_range_uj`` and, where given,
``energy_uj``. How much each draws is ours, and more than laptops do, so that the counters wrap often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from energy_plugins.testing.powercap import Zone

_SERVER_UJ, _SERVER_DRAM_UJ = 262143328850, 65712999613
_OLD_UJ = 262143999938
_AMD_UJ = 65532610987
_UNITS_NJ = {
    _SERVER_UJ: Fraction(61035),
    _SERVER_DRAM_UJ: Fraction(15300),
    _AMD_UJ: Fraction(15258),
    _OLD_UJ: Fraction(10**9, 2**14),
}
"""The unit that each largest value is 2^32 - 1 of."""


@dataclass(frozen=True)
class Recorded:
    """A machine's zones, and where they were shown."""

    zones: tuple[Zone, ...]
    source: str


def _zone(folder: str, name: str, largest_uj: int, power_w: float, energy_uj: int = 0) -> Zone:
    unit_nj = _UNITS_NJ[largest_uj]
    return Zone(folder, name, power_w, unit_nj, register=round(energy_uj * 1000 / unit_nj))


RECORDED: Mapping[str, Recorded] = {
    "Intel server, four sockets counted backwards": Recorded(
        (
            _zone("intel-rapl:0", "package-3", _SERVER_UJ, 240.0, 226618687799),
            _zone("intel-rapl:0:0", "dram", _SERVER_DRAM_UJ, 24.0, 60279115781),
            _zone("intel-rapl:1", "package-2", _SERVER_UJ, 250.0, 181795825861),
            _zone("intel-rapl:1:0", "dram", _SERVER_DRAM_UJ, 23.0, 58966008642),
            _zone("intel-rapl:2", "package-1", _SERVER_UJ, 260.0, 35231629289),
            _zone("intel-rapl:2:0", "dram", _SERVER_DRAM_UJ, 22.0, 32651449214),
            _zone("intel-rapl:3", "package-0", _SERVER_UJ, 270.0, 143013545932),
            _zone("intel-rapl:3:0", "dram", _SERVER_DRAM_UJ, 21.0, 26530978739),
        ),
        'the host "smp01" in the output that a public shell script prints and quotes (its repository is not known)',
    ),
    "Intel server, two sockets without dram": Recorded(
        (
            _zone("intel-rapl:0", "package-1", _SERVER_UJ, 390.0, 176399656753),
            _zone("intel-rapl:1", "package-0", _SERVER_UJ, 400.0, 147773556513),
        ),
        'the host "smp04" in the same output',
    ),
    "Intel server, four sockets with core and dram": Recorded(
        (
            _zone("intel-rapl:0", "package-0", _AMD_UJ, 120.0, 5597181429),
            _zone("intel-rapl:0:0", "core", _AMD_UJ, 80.0, 17890384969),
            _zone("intel-rapl:0:1", "dram", _AMD_UJ, 24.0, 42654180108),
            _zone("intel-rapl:1", "package-1", _AMD_UJ, 121.0, 44097140474),
            _zone("intel-rapl:1:0", "core", _AMD_UJ, 81.0, 28312441531),
            _zone("intel-rapl:1:1", "dram", _AMD_UJ, 25.0, 28336196162),
            _zone("intel-rapl:2", "package-2", _AMD_UJ, 122.0, 10537557287),
            _zone("intel-rapl:2:0", "core", _AMD_UJ, 82.0, 64874120580),
            _zone("intel-rapl:2:1", "dram", _AMD_UJ, 26.0, 11793304602),
            _zone("intel-rapl:3", "package-3", _AMD_UJ, 123.0, 1800898200),
            _zone("intel-rapl:3:0", "core", _AMD_UJ, 83.0, 19178661532),
            _zone("intel-rapl:3:1", "dram", _AMD_UJ, 27.0, 17701212944),
        ),
        'the host "Jacob" in the same output; 15.3 uJ is the unit of Sandy Bridge servers',
    ),
    "Intel laptop": Recorded(
        (
            _zone("intel-rapl:0", "package-0", _SERVER_UJ, 400.0, 26963529117),
            _zone("intel-rapl:0:0", "core", _SERVER_UJ, 80.0, 7980278886),
            _zone("intel-rapl:0:1", "uncore", _SERVER_UJ, 50.0, 6564982278),
        ),
        "github.com/flightlessmango/MangoHud/issues/1776",
    ),
    "Intel laptop with psys": Recorded(
        (
            _zone("intel-rapl:0", "package-0", _SERVER_UJ, 400.0),
            _zone("intel-rapl:0:0", "core", _SERVER_UJ, 90.0),
            _zone("intel-rapl:0:1", "uncore", _SERVER_UJ, 20.0),
            _zone("intel-rapl:1", "psys", _SERVER_UJ, 460.0),
        ),
        "github.com/ColinIanKing/powerstat/issues/15 (no readings)",
    ),
    "Core i7-4770S, kernel of 2015": Recorded(
        (
            _zone("intel-rapl:0", "package-0", _OLD_UJ, 400.0),
            _zone("intel-rapl:0:0", "core", _OLD_UJ, 90.0),
            _zone("intel-rapl:0:1", "uncore", _OLD_UJ, 20.0),
            _zone("intel-rapl:0:2", "dram", _OLD_UJ, 15.0, 2469474853),
        ),
        "github.com/intel/thermal_daemon/issues/45 (the ranges of 0:1 and 0:2, name and reading of 0:2)",
    ),
    "AMD Zen": Recorded(
        (
            _zone("intel-rapl:0", "package-0", _AMD_UJ, 150.0),
            _zone("intel-rapl:0:0", "core", _AMD_UJ, 60.0),
        ),
        "zones: github.com/flightlessmango/MangoHud/issues/1765; unit, on a 7950X: MangoHud/issues/1390 (no readings)",
    ),
}
