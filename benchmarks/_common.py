"""What benchmarks share: a result file that says where it comes from, bars that are met or not, intervals, progress."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from energy_plugins import __version__, visible_gpus

RESULTS = Path(__file__).parent / "results"

_ROOT = Path(__file__).parents[1]
_Z95 = 1.96
_MEASURED_CODE = ("energy_plugins", "csrc", "setup.py")
_PACKAGES = ("numpy", "torch", "lightning", "transformers", "accelerate", "optuna", "nvidia-ml-py")

Figures = Mapping[str, object]
Table = Mapping[str, ArrayLike]
"""Columns of equal length by name."""


class Kind(Enum):
    """What figures are; its value is printed over them."""

    MEASURED = "measured"
    SIMULATED = "SIMULATED: no measurement of hardware"
    REPLAYED = "replayed: recordings of hardware, with noise added"


@dataclass(frozen=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """What a figure must reach; ``show`` is how it is printed."""

    what: str
    value: float
    at_least: float = -math.inf
    at_most: float = math.inf
    show: str = ".2%"

    @property
    def met(self) -> bool:
        """Whether the figure reaches it; a figure that is not a number does not."""
        return self.at_least <= self.value <= self.at_most

    def __str__(self) -> str:
        ends = (("at least", self.at_least), ("at most", self.at_most))
        limits = " and ".join(f"{word} {limit:{self.show}}" for word, limit in ends if math.isfinite(limit))
        return f"{'PASS' if self.met else 'FAIL'}  {self.what}: {self.value:{self.show}} ({limits})"


def wilson(successes: int, count: int) -> Interval:
    """Return Wilson's interval of a share of independent trials."""
    if not count:
        return Interval(0.0, 1.0)
    share, z2 = successes / count, _Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Interval(max(middle - half, 0.0), min(middle + half, 1.0))


def bootstrap(
    groups: Sequence[NDArray[np.float64]], statistic: Callable[[NDArray[np.float64]], float], rounds: int = 1000
) -> Interval:
    """Return the percentile interval of ``statistic`` over all values; values of one group are drawn together."""
    rng = np.random.default_rng(0)
    draws = [
        statistic(np.concatenate([groups[row] for row in rng.integers(len(groups), size=len(groups))]))
        for _ in range(rounds)
    ]
    low, high = np.percentile(draws, (2.5, 97.5)).tolist()
    return Interval(low, high)


def progress(what: str, count: int) -> Iterator[int]:
    """Yield ``range(count)`` and say how far it is, about every two seconds, on stderr."""
    said = began = time.monotonic()
    for number in range(count):
        yield number
        now = time.monotonic()
        if number == count - 1 or now - said > 2.0:
            said = now
            sys.stderr.write(f"{what}: {number + 1} of {count}, {now - began:.0f} s\n")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def gpu_names() -> list[str]:
    """Return the GPUs of this machine and their driver, for `finish`."""
    return [f"{gpu.name}, driver {gpu.driver}" for gpu in visible_gpus()]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows``, the first of which is the heading, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        first, *others = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def finish(  # noqa: PLR0913 - the sections of a result, all but the first by name
    name: str,
    *,
    gpus: Sequence[str],
    figures: Figures,
    bars: Sequence[Bar],
    raw: Mapping[str, Table],
    kind: Kind | None = None,
) -> int:
    """Print the bars, write ``results/<name>.json``, and return what the process should exit with.

    Args:
        name: of the result file.
        gpus: what was measured, such as "NVIDIA H200, driver 580.159".
        figures: sections of the file, each of plain JSON values.
        bars: what the figures must reach.
        raw: what was measured one by one, as tables; floats are kept to five digits.
        kind: what the figures are; None if the GPUs tell: simulated ones have SIMULATED in their names.
    """
    kind = kind or (Kind.SIMULATED if any("SIMULATED" in gpu for gpu in gpus) else Kind.MEASURED)
    print()
    for bar in bars:
        print(bar)
    head = {
        "benchmark": name,
        "label": kind.value,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpus": list(gpus)},
        "versions": _versions(),
        "commit": os.environ.get("BENCHMARK_COMMIT") or _git("rev-parse", "HEAD") or "unknown",
        "sources": sources(),
        "uncommitted": _uncommitted(),
        **figures,
        "bars": [{**asdict(bar), "met": bar.met} for bar in bars],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(_text(head, raw))
    print(f"\n{head['label']}\n{path.relative_to(_ROOT)} is written")
    return 0 if all(bar.met for bar in bars) else 1


def sources() -> str:
    """Return a digest of the code that is measured, so that a result can be held against the commit it names.

    `python benchmarks/_common.py` prints it.
    """
    digest = hashlib.sha256()
    for path in sorted(path for top in _MEASURED_CODE for path in _files(_ROOT / top)):
        digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(top: Path) -> list[Path]:
    if top.is_file():
        return [top]
    return [path for path in top.rglob("*") if path.suffix in {".py", ".cpp", ".hpp"} and path.is_file()]


def _uncommitted() -> bool:
    """Tell whether the code differs from the commit that is named.

    A copy without its history is told both: the commit, and the digest of the code there.
    """
    named = os.environ.get("BENCHMARK_SOURCES")
    return sources() != named if named else bool(_git("status", "--porcelain", "--", *_MEASURED_CODE))


def _text(head: Figures, raw: Mapping[str, Table]) -> str:
    """Return JSON that can be read: figures on lines of their own, a raw column on one."""
    tables = [
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(key)}: {json.dumps(_plain(column))}" for key, column in table.items())
        + "\n  }"
        for name, table in raw.items()
    ]
    opened = json.dumps(_finite(head), indent=1, allow_nan=False).removesuffix("\n}")
    return f'{opened},\n "raw": {{\n' + ",\n".join(tables) + "\n }\n}\n"


def _finite(value: object) -> object:
    """Return ``value`` as JSON has it, with null for what is not a number."""
    match value:
        case Interval():
            return [_finite(value.low), _finite(value.high)]
        case Mapping():
            return {str(key): _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float():
            return float(f"{value:.6g}") if math.isfinite(value) else None
        case _:
            return value


def _plain(column: ArrayLike) -> list[object]:
    return [float(f"{item:.5g}") if isinstance(item, float) else item for item in np.asarray(column).tolist()]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    versions = {"energy_plugins": __version__, "python": platform.python_version(), "linux": platform.release()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    print(sources())
