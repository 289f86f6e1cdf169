"""What was found wrong with the gradients of a training in the middle of it: in numbers that ranks tell each other."""

from __future__ import annotations

from typing import NamedTuple

_MOST_SAID = 200
"""Characters of what was raised that are told."""


class Doubt(NamedTuple):
    """A check that did not agree. Optimizer steps count from 1, in this run of the training."""

    step: float
    """The one that was checked."""
    difference: float
    """By which share of their norm its gradients differed; below 0 if they could not be compared."""
    first: float
    """The first step whose gradients may have been different; 0 if there is none."""
    last: float
    """The last one."""
    raised: str = ""
    """What was raised where they could not be compared, on this rank; empty if nothing was. Ranks tell only numbers."""

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """What ranks tell each other."""
        return self.step, self.difference, self.first, self.last

    @property
    def steps(self) -> tuple[int, ...]:
        """First and last step whose gradients may have been different; none if there is none."""
        return (int(self.first), int(self.last)) if self.first else ()

    def why(self) -> str:
        """Return a sentence that says it."""
        differed = (
            f"the gradients of optimizer step {self.step:.0f} would have differed by {self.difference:.2g} of their "
            "norm in another micro-batch"
        )
        if self.difference < 0:
            differed = (
                f"the samples of optimizer step {self.step:.0f} have other numbers of labels than any before, and the "
                f"gradients could not be compared{f' ({self.raised})' if self.raised else ''}"
            )
        if not self.first:
            made = "no step is known to have been made with such gradients"
        elif self.difference < 0:
            made = f"nobody knows whether those of steps {self.first:.0f} to {self.last:.0f} were the same"
        else:
            made = f"those of steps {self.first:.0f} to {self.last:.0f} may have differed by as much"
        return f"{differed}; {made}, and your setting is in force again"


class GradientsDifferError(Exception):
    """Raised on all ranks once one of them has told the others of a doubt."""

    def __init__(self, doubt: Doubt) -> None:
        super().__init__(doubt.why())
        self.doubt = doubt


def said_of(error: Exception) -> str:
    """Return the first line of what was raised, as it may stand in a sentence: short, and printable."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    short = text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}..."
    return "".join(char if char.isprintable() else "?" for char in short)


def first_of(doubts: list[Doubt]) -> Doubt | None:
    """Return what is to be said of those of all ranks, of which 0 is none: the worst, and all steps of all of them."""
    found = [doubt for doubt in doubts if doubt.step]
    if not found:
        return None
    steps = [one for doubt in found for one in doubt.steps]
    return Doubt(
        step=min(doubt.step for doubt in found),
        difference=max(doubt.difference for doubt in found),
        first=min(steps, default=0),
        last=max(steps, default=0),
    )


def told_difference(difference: float) -> float:
    """Return it as a sum over ranks can carry it: finite."""
    return min(difference, 1e300)
