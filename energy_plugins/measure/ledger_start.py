"""What the ledger is told of a run when it starts: who runs what, where."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping

from energy_plugins.measure.heartbeat import Heartbeat, open_runs
from energy_plugins.measure.json_section import JSON
from energy_plugins.measure.ledger_entry import GpuEntry, LedgerEntry, Status, is_id, one_line
from energy_plugins.measure.options import Options
from energy_plugins.measure.rank_part import Rank
from energy_plugins.measure.reporting import Facts
from energy_plugins.measure.spool import INSIDE_VARIABLE, PROJECT_VARIABLE, is_wanted, own_process, own_project


def begin_heartbeat(options: Options, facts: Facts, say: Callable[[str], None], *, threaded: bool) -> Heartbeat:
    """Return the heartbeat of a run that starts now, one that writes nothing where the ledger is not wanted."""
    first = None
    try:
        if is_wanted() if options.ledger is None else options.ledger:
            first = _first_entry(options, facts)
    except (OSError, ValueError) as error:
        say(f"the ledger does not get this run: {error}")
    return Heartbeat(first, say, threaded=threaded)


def _first_entry(options: Options, facts: Facts) -> LedgerEntry:
    """Return the entry of a run of which nothing is measured yet. Raises OSError where ``/proc`` is not there."""
    rank, plan, config = facts.rank or Rank(), facts.plan, facts.config
    project = options.project or os.environ.get(PROJECT_VARIABLE, "").strip() or own_project()
    inside = open_runs[-1] if open_runs else os.environ.get(INSIDE_VARIABLE, "")
    framework = _text(config, "framework") or ("command" if "command" in config else "")
    return LedgerEntry(
        run_id=facts.run_id,
        training_id=facts.run_id,
        inside=inside if is_id(inside) else "",
        rank=rank.rank,
        world_size=rank.world_size,
        name=one_line(facts.name),
        node=one_line(facts.node),
        user=one_line(_user()),
        project=one_line(project),
        model=one_line(_text(config, "model")),
        framework=one_line(framework),
        simulated=plan.simulated,
        started=facts.started,
        updated=facts.started,
        beat=0,
        status=Status.RUNNING,
        process=own_process(),
        duration_s=0.0,
        energy_j=None,
        missing="",
        gpus=tuple(
            GpuEntry(uuid=one_line(gpu.visible_uuid), name=one_line(gpu.name), energy_j=None)
            for gpu in (*plan.gpus, *plan.slices)
        ),
        steps=0,
        samples=None,
        tokens=None,
    )


def _text(config: Mapping[str, JSON], key: str) -> str:
    found = config.get(key)
    return found if isinstance(found, str) else ""


def _user() -> str:
    """Return who runs this, by the kernel's word rather than by a variable's."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may know its user by number only
        return str(os.geteuid())
