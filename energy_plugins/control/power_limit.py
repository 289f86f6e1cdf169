"""`PowerLimit`: what users hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from energy_plugins.control.backend import BackEnd, Request, Status
from energy_plugins.control.binding import Binding, judge
from energy_plugins.control.entry import SAME_W, Knob
from energy_plugins.control.held import BACK_ENDS, LOOK_EVERY_S, Held
from energy_plugins.control.nvml import Card
from energy_plugins.errors import ControlError
from energy_plugins.measure.devices import Gpu


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a limit would do that nobody here may set."""

    limit_w: float
    found_w: float
    drawn_w: float | None
    would_bind: bool | None
    """Whether the GPU draws more at this moment; None where it does not tell."""
    why: str
    """Why it was not set."""
    remedy: str
    """What would be needed."""

    def __str__(self) -> str:
        drawn = "" if self.drawn_w is None else f", and draws {self.drawn_w:.0f} W"
        would = {True: "would bind", False: "would not bind", None: "may bind"}[self.would_bind]
        head = f"a limit of {self.limit_w:g} W {would}: the GPU may draw {self.found_w:g} W{drawn}"
        return f"{head}; it is not set: {self.why}; to have it: {self.remedy}"


@dataclass(frozen=True)
class PowerLimit:
    """Power limits of one of `visible_gpus`: ``with PowerLimit(gpu).at(watts=450): ...`` puts back what it found.

    Constructing it opens nothing.
    """

    gpu: Gpu
    allow_above_found: bool = False
    """Whether a limit may be higher than the one found, which somebody may have set on purpose."""
    back_ends: Sequence[BackEnd] = BACK_ENDS
    """Asked in turn; without `Advise` among them, a refusal is an error."""
    look_every_s: float = LOOK_EVERY_S

    def at(self, watts: float | None = None) -> HeldLimit:
        """Return a context manager that sets this limit (W); None leaves the one found until `HeldLimit.set`.

        Entering it raises:
            ControlError: The limit is out of range, or reading it back showed another.
            RefusedError: No back end may change it.
            OwnedError: Another process controls this GPU.
            NvmlError, LibraryError: The driver fails.
        """
        return HeldLimit(self, watts)


class HeldLimit(Held):
    """The power limit of one GPU inside a ``with`` block."""

    def __init__(self, limit: PowerLimit, watts: float | None) -> None:
        request = Request(gpu=limit.gpu, knob=Knob.POWER)
        super().__init__(request, None if watts is None else float(watts), limit.back_ends, limit.look_every_s)
        self._above_found = limit.allow_above_found
        self._wanted_w = watts
        self._reasons: int | None = None
        self.found_w = 0.0
        """The limit that was asked for when the block began (W)."""
        self.default_w: float | None = None
        """The limit that the GPU starts with (W); None where the driver does not tell."""
        self.range_w = (0.0, 0.0)
        """The lowest and the highest limit that `set` takes (W)."""

    def set(self, watts: float) -> Status:
        """Set another limit (W), and return how it stands; where nothing may be changed, nothing is.

        It takes some milliseconds: a file reaches the disk before the driver is told.

        Raises:
            ControlError: It is out of range, or reading it back showed another.
            JournalError: The journal cannot be written; nothing was changed.
            NvmlError: The driver fails.
        """
        self._check_range(watts)
        self._holding()
        self._wanted_w = watts
        self._reasons = None
        return self._turn(float(watts))

    def binding(self, drawn_w: float | None = None) -> Binding:
        """Tell whether the limit binds: by ``drawn_w``, a mean over a while, or by what the GPU draws now (W).

        Where limits are only advised, whether the one wanted would.
        """
        self._lease()
        self._observe_if_settled()
        drawn_w = self._ask(self._card.drawn_w) if drawn_w is None else drawn_w
        if not self._lease().changes:
            return judge(drawn_w=drawn_w, limit_w=self._wanted_w, enforced_w=None, reasons=0)
        limit_w, enforced_w = self._ask(self._card.limit_w), self._ask(self._card.enforced_w)
        return judge(drawn_w=drawn_w, limit_w=limit_w, enforced_w=enforced_w, reasons=self._reasons)

    def advice(self) -> Advice | None:
        """Return what the limit wanted would do where it may not be set; None where it is, or none is wanted."""
        if self._lease().changes or self._wanted_w is None:
            return None
        binding = self.binding()
        remedies = [refusal.remedy for refusal in self.refusals if refusal.remedy]
        return Advice(
            limit_w=self._wanted_w,
            found_w=self.found_w,
            drawn_w=binding.drawn_w,
            would_bind=binding.binds,
            why="; ".join(str(refusal) for refusal in self.refusals) or "only advice was asked for",
            remedy=" or ".join(remedies) or "allow a back end that sets it",
        )

    def _observe(self) -> None:
        bits = self._ask(self._card.reasons)
        if bits is not None:
            self._reasons = bits | (self._reasons or 0)

    def _allow(self, card: Card) -> None:
        found_w = self._lease().found
        self.found_w = card.limit_w() if found_w is None else found_w
        self.default_w = self._ask(card.default_w)
        lowest_w, highest_w = card.range_w()
        self.range_w = (lowest_w, highest_w if self._above_found else min(highest_w, self.found_w))
        if self._first is not None:
            self._check_range(self._first)

    def _check_range(self, watts: float) -> None:
        lowest_w, highest_w = self.range_w
        if lowest_w - SAME_W <= watts <= highest_w + SAME_W:
            return
        message = f"GPU {self.gpu.uuid} takes limits of {lowest_w:g}-{highest_w:g} W here, not {watts:g} W"
        if watts > highest_w and not self._above_found:
            message += "; above the limit found only with PowerLimit(gpu, allow_above_found=True)"
        raise ControlError(message)
