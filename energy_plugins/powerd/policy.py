"""Who may do what: pure, so that a table of cases is a test.

Being root makes no difference: root of the machine has nvidia-smi, and root of a container is somebody in a container.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from energy_plugins.powerd.config import Config, Grant
from energy_plugins.powerd.peers import Namespaces, Peer, Process

_MPS = "nvidia-cuda-mps"  # how the names of its server and control processes begin


@dataclass(frozen=True)
class Use:
    """What a GPU is used for at this moment."""

    processes: tuple[Process, ...] = ()
    mig: bool = False
    mps: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether a peer may set a GPU's limit, and why."""

    allowed: bool
    why: str


@dataclass(frozen=True)
class Bounds:
    """What may be set, in milliwatts; nothing if the lowest is above the highest."""

    min_mw: int
    max_mw: int

    def clamp(self, limit_mw: int) -> int:
        """Return the nearest value inside."""
        return min(max(limit_mw, self.min_mw), self.max_mw)


@dataclass(frozen=True)
class Site:
    """Where peers are judged."""

    config: Config
    home: Namespaces
    """Those of this helper: whoever is in others is in a container."""


def judge(peer: Peer, uuid: str, use: Use, site: Site, *, holds: bool = False) -> Verdict:
    """Say whether ``peer`` may set the limit of a GPU that is used so.

    ``holds``: whether it has a lease already, which it may keep while nobody computes on the GPU.
    """
    if any(_granted(peer, uuid, grant, site.home) for grant in site.config.grants):
        return Verdict(True, "the site grants it")
    objection = next(_objections(peer.process, use, holds=holds), None)
    return Verdict(True, "you alone compute on it") if objection is None else Verdict(False, objection)


def bounds(uuid: str, card: Bounds, found_mw: int, config: Config) -> Bounds:
    """Return what may be set on a GPU: within its own range, the site's, and no more than was found."""
    site = config.range_of(uuid)
    tops = [float(card.max_mw), site.max_w * 1e3, *([] if config.above_found else [float(found_mw)])]
    return Bounds(round(max(card.min_mw, site.min_w * 1e3)), round(min(tops)))


def shared_by_nature(use: Use) -> str:
    """Say why a GPU is nobody's alone, whoever computes on it; "" if it may be somebody's."""
    if use.mig:
        return "the GPU is divided (MIG), and its limit would be others' too"
    if use.mps or any(process.name.startswith(_MPS) for process in use.processes):
        return "the GPU is shared through MPS"
    return ""


def _objections(asking: Process, use: Use, *, holds: bool) -> Iterator[str]:
    shared = shared_by_nature(use)
    if shared:
        yield shared
    if any(None in {process.uid, process.namespaces} for process in use.processes):
        yield "it cannot be told who computes on the GPU"
    if not all(process.is_same_user(asking) for process in use.processes):
        yield "others compute on the GPU"
    if not use.processes and not holds:
        yield "no process of yours computes on the GPU"


def _granted(peer: Peer, uuid: str, grant: Grant, home: Namespaces) -> bool:
    named = peer.uid in grant.uids or bool(peer.groups & grant.gids)
    return named and grant.covers(uuid) and (grant.containers or peer.process.namespaces == home)
