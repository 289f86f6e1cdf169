"""``energy-plugins doctor``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

import click

from energy_plugins import __version__
from energy_plugins.cli.check import ANSWER, ASK_NVIDIA_SMI, Check, Status, Verdict
from energy_plugins.cli.options import seconds
from energy_plugins.cli.probe import Answer, Probe, Say

SCHEMA = "energy-plugins/doctor"
SCHEMA_VERSION = 1
"""To be raised when a key changes its meaning or goes; keys may be added."""

_WIDTH = 100
_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.MISSING: "red"}
_SENTENCES = {
    Verdict.READY: "All that is needed to measure the energy of the GPUs works.",
    Verdict.INCOMPLETE: "Something that is needed is missing; what to do stands above.",
    Verdict.NOTHING: "Nothing can be measured here; what to do stands above.",
}

_RESTORED = {
    Verdict.READY: "Nothing that killed trainings left changed is left to put back.",
    Verdict.INCOMPLETE: "Something could not be put back; why stands above.",
}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a page.")
@click.option("--restore", is_flag=True, help="Put back limits and clocks that killed trainings left changed.")
@seconds("--timeout", "How long the driver has to answer.")
@click.pass_context
def command(ctx: click.Context, *, as_json: bool, restore: bool, timeout: float) -> None:
    """Say what can be measured on this machine: each GPU and each sensor, what works, what does not, why, what to do.

    Changes nothing, unless asked to restore, and does not hang where the driver does.

    \b
    Examples:
      energy-plugins doctor
      energy-plugins doctor --json | jq '.checks[] | select(.status != "ok")'
      energy-plugins doctor || exit 1            in a script, before a run
      energy-plugins doctor --restore            after a whole container or cgroup was killed

    Exit codes: 0 all that GPU energy needs works, 1 something that is needed is missing, 3 nothing can be measured at
    all, 2 wrong use. With --restore: 0 nothing is left to put back, 1 something could not be put back.
    """
    probe = Probe(_restored_checks if restore else _driver_checks)
    from energy_plugins.cli.machine_checks import machine_checks  # noqa: PLC0415 - no thread of numpy's before the fork

    machine = () if restore else tuple(machine_checks())
    checks = (*_whole(probe.answer(timeout), timeout), *machine)
    verdict = Verdict.of_restoring(checks) if restore else Verdict.of(checks)
    if as_json:
        page = {
            "schema": SCHEMA,
            "version": SCHEMA_VERSION,
            "energy_plugins": __version__,
            "verdict": verdict.name.lower(),
            "exit_code": verdict.value,
            "checks": [check.plain() for check in checks],
        }
        click.echo(json.dumps(page, indent=1))
    else:
        for line in _page(checks):
            click.echo(line)
        click.echo(f"\n{(_RESTORED if restore else _SENTENCES)[verdict]}")
    ctx.exit(verdict.value)


def _driver_checks(say: Say) -> Iterator[Check]:
    from energy_plugins.cli.driver_checks import driver_checks  # noqa: PLC0415 - no thread of numpy's before the fork

    yield from driver_checks(say)


def _restored_checks(say: Say) -> Iterator[Check]:
    from energy_plugins.cli.control_checks import restored_checks  # noqa: PLC0415 - no thread of numpy's before the fork

    yield from restored_checks(say)


def _whole(answer: Answer, timeout_s: float) -> tuple[Check, ...]:
    """Return what the driver said, and that it stopped answering if it did."""
    if answer.unfinished is None:
        return answer.checks
    if answer.died:
        found, why = "the process that asked it died", f"while {answer.unfinished}"
        remedy = ASK_NVIDIA_SMI
    else:
        found, why = "the driver does not answer", f"nothing came for {timeout_s:g} s while {answer.unfinished}"
        remedy = (
            "give it longer, as a sleeping driver needs seconds: energy-plugins doctor --timeout 30; if that does not "
            "help, see dmesg, hide the GPU with CUDA_VISIBLE_DEVICES or reboot"
        )
    return (Check(ANSWER, Status.MISSING, found, why, remedy), *answer.checks)


def _page(checks: Sequence[Check]) -> Iterator[str]:
    """Yield the lines of the page: the machine first, then GPU by GPU."""
    width = max(len(check.name) for check in checks)
    for gpu in dict.fromkeys(["", *(check.gpu for check in checks)]):
        if gpu:
            yield f"\n{gpu}"
        for check in (check for check in checks if check.gpu == gpu):
            yield from _lines(check, width)


def _lines(check: Check, width: int) -> Iterator[str]:
    mark = click.style(f"{check.status.value:<8}", fg=_COLOURS[check.status])
    margin = " " * (width + 11)
    found, *more = textwrap.wrap(check.found, _WIDTH - len(margin), break_on_hyphens=False) or [""]
    yield f"{mark} {check.name:<{width}}  {found}"
    yield from (f"{margin}{line}" for line in more)
    for label, text in (("why:", check.why), ("do:", check.remedy)):
        if text:
            yield from textwrap.wrap(
                text,
                _WIDTH,
                initial_indent=f"{margin}{label:<5}",
                subsequent_indent=f"{margin}     ",
                break_on_hyphens=False,
            )
