"""What an administrator wants to know: whether the helper would start, and who would be told what."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from energy_plugins.powerd import trust
from energy_plugins.powerd.config import Config, Grant, SiteConfigError, read
from energy_plugins.powerd.journal import BadEntry, Journal
from energy_plugins.powerd.nvml import DriverError, Nvml
from energy_plugins.powerd.peers import Peer, Process, own_namespaces
from energy_plugins.powerd.policy import Site, bounds, judge, shared_by_nature


@dataclass(frozen=True)
class Finding:
    """A sentence, and whether it keeps the helper from doing its work."""

    text: str
    wrong: bool = False


def preflight(path: Path, loader_variables: Sequence[str]) -> tuple[Config | None, list[str]]:
    """Return what a configuration says, if it may be believed, and whatever keeps the helper from starting.

    ``loader_variables``: those of the environment that the loader has obeyed.
    """
    wrong = [*_how_started(loader_variables), *trust.faults_of_this_process(), *trust.faults(path)]
    try:
        config = read(path)
    except (SiteConfigError, OSError) as error:
        return None, [*wrong, f"{path}: {error}"]
    return config, [*wrong, *_faults_of_places(config)]


def findings(config: Config | None, wrong: Sequence[str]) -> Iterator[Finding]:
    """Yield what there is to say about a configuration and this machine; nothing is changed."""
    for sentence in wrong:
        yield Finding(f"will not start: {sentence}", wrong=True)
    if config is None:
        return
    yield from _about_config(config)
    try:
        nvml = Nvml(config.nvml)
        for uuid in nvml.uuids():
            yield from _about_gpu(nvml, uuid, Site(config, own_namespaces()))
    except (DriverError, OSError) as error:
        yield Finding(f"cannot serve: {error}", wrong=True)


def show(found: Iterable[Finding]) -> int:
    """Print findings as they come, and return the exit code."""
    code = 0
    for finding in found:
        code = 1 if finding.wrong else code
        sys.stdout.write(f"{'WRONG' if finding.wrong else 'ok   '}  {finding.text}\n")
    return code


def _how_started(loader_variables: Sequence[str]) -> Iterator[str]:
    if os.geteuid() != 0:
        yield "it has to be run by root"
    if not sys.flags.isolated:
        yield "it has to be run with python -I: else the environment decides what code it runs"
    for name in loader_variables:
        yield f"{name} is set: it may have put other code into this process"


def _faults_of_places(config: Config) -> Iterator[str]:
    """Yield what is wrong with the places a configuration names; the journal's and the socket's folders may be made."""
    yield from trust.faults(config.nvml)
    for folder in (config.journal, config.socket.parent):
        there = folder
        while not there.exists():
            there = there.parent
        yield from trust.faults(there)


def _about_config(config: Config) -> Iterator[Finding]:
    who = "root alone" if config.gid is None else f"root and group {config.gid}"
    yield Finding(f"{config.socket}: {who} may connect; {_answers(config.socket)}")
    for grant in config.grants:
        yield Finding(_about_grant(grant))
    try:
        journal = Journal(config.journal)
        for uuid in journal.uuids():
            yield _about_entry(journal, uuid)
    except OSError as error:
        yield Finding(f"the journal cannot be read: {error}", wrong=True)


def _about_grant(grant: Grant) -> str:
    whom = [*(f"user {_name(uid)}" for uid in sorted(grant.uids)), *(f"group {gid}" for gid in sorted(grant.gids))]
    where = ", in containers too" if grant.containers else ""
    return f"granted to {', '.join(whom)}{where}: {', '.join(sorted(grant.gpus))}"


def _about_entry(journal: Journal, uuid: str) -> Finding:
    try:
        entry = journal.read(uuid)
    except (BadEntry, OSError) as error:
        return Finding(f"{uuid}: its entry in the journal cannot be read, so nobody gets it: {error}", wrong=True)
    limits = " or ".join(f"{limit / 1e3:g} W" for limit in entry.ours_mw)
    return Finding(
        f"{uuid}: set to {limits} for {_name(entry.uid)} (pid {entry.pid}); {entry.found_mw / 1e3:g} W found"
    )


def _about_gpu(nvml: Nvml, uuid: str, site: Site) -> Iterator[Finding]:
    limit_mw = nvml.limit_mw(uuid)
    may = bounds(uuid, nvml.bounds(uuid), limit_mw, site.config)
    text = f"{uuid}: {limit_mw / 1e3:g} W now, {may.min_mw / 1e3:g}-{may.max_mw / 1e3:g} W may be set"
    yield Finding(text if may.min_mw <= may.max_mw else f"{uuid}: {limit_mw / 1e3:g} W now; nothing may be set")
    use = nvml.use(uuid)
    shared = shared_by_nature(use)
    if shared:
        yield Finding(f"{uuid}: refused without a grant: {shared}")
    if not use.processes:
        yield Finding(f"{uuid}: nobody computes on it, so whoever has no grant is refused")
    for process in use.processes:
        yield Finding(f"{uuid}: {_verdict(process, uuid, nvml, site)}")


def _verdict(process: Process, uuid: str, nvml: Nvml, site: Site) -> str:
    who = f"pid {process.pid} ({process.name or 'hidden'})"
    if process.uid is None:
        return f"{who}: it cannot be told whose it is, so whoever has no grant is refused"
    verdict = judge(Peer(process, process.uid, frozenset()), uuid, nvml.use(uuid), site)
    return f"{who} of {_name(process.uid)}: {'allowed' if verdict.allowed else 'refused'}: {verdict.why}"


def _answers(path: Path) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError as error:
            return f"nobody answers there ({error.strerror or error})"
    return "a helper answers there"


def _name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"uid {uid}"
