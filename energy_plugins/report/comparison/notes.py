"""What the reader of a comparison has to know of its runs, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from energy_plugins.report.comparison.runs import LeftOut, Run
from energy_plugins.report.comparison.same_work import WorkUnit, work_of

_SHORT_S: Final = 5.0
_LEAST_COVERAGE: Final = 0.95


def notes_of(
    sides: Mapping[str, Sequence[Run]], unit: WorkUnit, left_out: Sequence[LeftOut], reference: Sequence[Run]
) -> Iterator[str]:
    """Yield what limits a comparison: what is left out, what differs beside the sides, what is known of too little."""
    runs = [run for some in sides.values() for run in some]
    for one in left_out:
        yield f"{one.folder} is left out: {one.reason}"
    if unit is WorkUnit.RUN and not any(work_of(run) != (0,) for run in runs):
        yield "no run says how much work it did: each counts as one, and you vouch that they did the same"
    if len({run.gpus for run in runs}) > 1:
        models = sorted({name for run in runs for name in run.gpus})
        yield f"the GPUs differ ({', '.join(models)}), so a difference may be theirs"
    if any(run.start_c is None for run in (*runs, *reference)):
        yield "start temperatures are not known of all runs, so nothing is corrected for them"
    if short := [run for run in runs if run.duration_s < _SHORT_S]:
        yield f"{len(short)} of {len(runs)} runs are shorter than {_SHORT_S:g} s, over which sensors are noisy"
    if gaps := [run for run in runs if run.coverage < _LEAST_COVERAGE]:
        yield f"{len(gaps)} of {len(runs)} runs, {gaps[0].folder} among them: readings cover too little of it"
    if once := [label for label, some in sides.items() if len(some) == 1]:
        yield f"{', '.join(once)}: one run alone does not tell how much runs vary; repeat it"
    if reference:
        places = {run.place for run in runs}
        known = places & {run.place for run in reference}
        yield (
            f"{len(reference)} reference runs tell the offsets of {len(known)} of {len(places)} places, taken to be "
            "the same share for what the sides do"
        )
