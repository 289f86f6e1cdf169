"""How the samples of an optimizer step go through the model: which batches are cut, which run together. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from energy_plugins.errors import BatchError


@dataclass(frozen=True)
class MicroBatchPlan:
    """A micro-batch, and what it makes of the batches of one rank.

    Raises:
        BatchError: if ``size`` cannot be made of whole batches of the window, or of equal parts of one.
    """

    batch: int
    """Samples that the loader yields for each iteration."""
    accumulation: int
    """Iterations of an optimizer step, as the framework accumulates gradients."""
    size: int
    """Samples that go through the model at once."""

    def __post_init__(self) -> None:
        possible = sizes(self.batch, self.accumulation)
        if self.size not in possible:
            listed = ", ".join(map(str, possible))
            raise BatchError(
                f"a micro-batch of {self.size} does not fit {self.accumulation} batches of {self.batch}: it must be "
                f"one of {listed}"
            )

    @property
    def share(self) -> int:
        """This rank's samples of an optimizer step, which no plan changes."""
        return self.batch * self.accumulation

    @property
    def parts(self) -> int:
        """Into how many micro-batches a batch is cut; 1 if it is not."""
        return max(self.batch // self.size, 1)

    @property
    def together(self) -> int:
        """How many batches run as one micro-batch; 1 if each runs alone."""
        return max(self.size // self.batch, 1)

    @property
    def passes(self) -> int:
        """How often the model runs for an optimizer step."""
        return self.share // self.size

    @property
    def is_users(self) -> bool:
        """Whether nothing is changed."""
        return self.size == self.batch


def sizes(batch: int, accumulation: int) -> tuple[int, ...]:
    """Return the micro-batches that are possible, in order: divisors of a batch, and of the window in whole batches.

    Raises:
        BatchError: if there is no batch, or none is accumulated.
    """
    if batch < 1 or accumulation < 1:
        raise BatchError(f"{accumulation} batches of {batch} samples are no optimizer step: both must be 1 or more")
    return (*_divisors(batch), *(batch * together for together in _divisors(accumulation)[1:]))


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(one for one in range(1, number + 1) if number % one == 0)
