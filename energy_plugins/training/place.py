"""Where one process of a training measures: on which GPUs, and into which folder, agreed with the other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from energy_plugins.measure.rank_part import Rank
from energy_plugins.training.folder import new_folder
from energy_plugins.training.guard import FAILURES, warn

if TYPE_CHECKING:
    from energy_plugins.config import EnergyConfig
    from energy_plugins.distributed import RankExchange

Devices = Sequence[int | str] | None
"""GPUs as `EnergyMeter` takes them."""


def rank_of(rank: int, world_size: int, local_rank: int, local_world_size: int = 0) -> Rank:
    """Return which process a framework says this is; how many its node has the launcher says, if the framework cannot.

    One that is alone is rank 0 of 1, whatever a launcher has left in the environment.
    """
    if world_size == 1:
        return Rank()
    who = Rank.of(os.environ, (rank, world_size))
    return replace(who, local_rank=local_rank, local_world_size=local_world_size or who.local_world_size)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a run is told of its process."""

    devices: Devices
    """To measure; None for all that are visible."""
    folder: Path | None
    """For the report of this rank, new; None if it is not kept."""
    counts: bool = True
    """Whether the joules of these GPUs are no other rank's too."""
    exchange: RankExchange | None = None
    """With the other ranks, None if there are none."""

    @classmethod
    def of(cls, who: Rank, config: EnergyConfig, parent: Path, devices: Devices) -> Self:
        """Return the place of ``who``. Rank 0 makes the folder, for which the others wait, 30 s at most.

        Args:
            who: which process of the training this is.
            config: may name GPUs and a folder, over those that follow.
            parent: where reports go.
            devices: what this process trains on; None if its framework does not say.
        """
        named = config.measure.devices

        def claim() -> Path:
            return new_folder(Path(config.report.folder or parent), config.report.name or "run")

        if who.alone:
            return cls(devices=devices if named is None else named, folder=_claimed(claim))
        from energy_plugins.distributed import RankExchange, this_rank  # noqa: PLC0415 - for many ranks only

        exchange = RankExchange("training", this_rank(who))
        if named is not None:
            devices, counts = named, who.local_rank == 0  # its neighbours measure them, too
        elif devices is not None:
            counts = True
        else:
            devices = exchange.own_gpus()
            counts = exchange.first_on_gpu
        return cls(devices=devices, folder=exchange.agree(claim), counts=counts, exchange=exchange)

    @property
    def who(self) -> Rank | None:
        """Whose report it will be, where there are several."""
        return None if self.exchange is None else self.exchange.who

    def abandon(self) -> None:
        """Let no other rank wait for this one."""
        if self.exchange is not None:
            self.exchange.abandon()


def _claimed(claim: Callable[[], Path]) -> Path | None:
    try:
        return claim()
    except FAILURES as error:
        warn(f"the report is not kept on disk: {error}")
        return None
