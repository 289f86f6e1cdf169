"""The levels of memory that a device computes from, nearest first: what fits where."""

from __future__ import annotations

import math
from dataclasses import dataclass

from energy_plugins.errors import ConfigError


@dataclass(frozen=True)
class Level:
    """One level of memory: a cache, or the memory behind the caches.

    Raises:
        ConfigError: if a size, bandwidth or number of sharers is not above 0.
    """

    name: str
    """L1, L2, L3; then of a GPU HBM or GDDR ("memory" if it does not tell), of a CPU DRAM."""
    size_bytes: int
    """All of it that the device has, or that this process may use: of a level in several pieces their sum."""
    bandwidth_bytes_per_s: float | None = None
    """Between it and the cores, where that is known."""
    sharers: int = 1
    """How many cores (of a GPU: multiprocessors) share one piece of it."""

    def __post_init__(self) -> None:
        bandwidth = self.bandwidth_bytes_per_s
        if self.size_bytes <= 0 or self.sharers <= 0 or (bandwidth is not None and not 0 < bandwidth < math.inf):
            raise ConfigError(
                f"{self} cannot be a level of memory: size and sharers must be above 0, and so must the bandwidth, or "
                "None where it is not known"
            )


@dataclass(frozen=True)
class MemoryHierarchy:
    """The levels of one device, nearest to its cores first.

    Raises:
        ConfigError: if two levels have one name.
    """

    device: str
    """What it is: the name of the GPU, or "CPU"."""
    levels: tuple[Level, ...]
    notes: tuple[str, ...] = ()
    """Why a level, or something about one, is not known; what limits it."""

    def __post_init__(self) -> None:
        names = [level.name for level in self.levels]
        if len({*names}) < len(names):
            raise ConfigError(f"the levels of {self.device} are {', '.join(names)}: give each a name of its own")

    @staticmethod
    def detect(device: object = "cuda") -> MemoryHierarchy:
        """Return the levels of a device: ``"cuda"``, ``"cuda:1"``, the number of a GPU as CUDA counts, or ``"cpu"``.

        A `torch.device` will do. CUDA is not initialised and no context is made: where the process has not begun to
        use CUDA a short-lived child asks the driver. A level that cannot be told is left out, with a note.

        Raises:
            DeviceError: there is no such device.
        """
        from energy_plugins.measure.memory_levels import memory_levels  # noqa: PLC0415 - above: it knows devices

        return memory_levels(device)

    def level(self, name: str) -> Level | None:
        """Return the level of this name, None if it is not there or not known."""
        return next((level for level in self.levels if level.name == name), None)

    def level_of(self, size_bytes: float) -> Level | None:
        """Return the nearest level that holds so many bytes; None if none does."""
        return next((level for level in self.levels if size_bytes <= level.size_bytes), None)
