"""`PowerLimit`: what users hold."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from energy_plugins.control.backend import BackEnd, Lease, Request, Status
from energy_plugins.control.binding import Binding, judge, lasting
from energy_plugins.control.entry import SAME_W, Knob
from energy_plugins.control.held import BACK_ENDS, LOOK_EVERY_S, RECENT_LOOKS, Held
from energy_plugins.control.nvml import Card
from energy_plugins.errors import ControlError, NvmlError
from energy_plugins.measure.devices import Gpu


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What a limit would do that nobody here may set."""

    limit_w: float
    found_w: float
    """Not a number where the driver did not answer."""
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
        may = "" if math.isnan(self.found_w) else f": the GPU may draw {self.found_w:g} W{drawn}"
        head = f"a limit of {self.limit_w:g} W {would}{may}"
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
        request = Request(gpu=limit.gpu, knob=Knob.POWER, allow_above_found=limit.allow_above_found)
        super().__init__(request, None if watts is None else float(watts), limit.back_ends, limit.look_every_s)
        self._above_found = limit.allow_above_found
        self._wanted_w = watts
        self._reasons = deque[int](maxlen=RECENT_LOOKS)  # since the limit was set
        self.found_w = math.nan
        """The limit that was asked for when the block began (W); not a number where the driver did not answer."""
        self.default_w: float | None = None
        """The limit that the GPU starts with (W); None where the driver does not tell."""
        self.range_w = (math.nan, math.nan)
        """The lowest and the highest limit that `set` takes (W)."""

    def set(self, watts: float) -> Status:
        """Set another limit (W), and return how it stands; where nothing may be changed, nothing is.

        It takes some milliseconds: a file reaches the disk before the driver is told.

        Raises:
            ControlError: It is out of range, or reading it back showed another.
            JournalError: The journal cannot be written; nothing was changed.
            NvmlError: The driver fails.
        """
        self._holding()
        watts = self._within_range(watts)
        self._wanted_w = watts
        try:
            return self._turn(watts)
        finally:
            self._reasons = deque(maxlen=RECENT_LOOKS)  # a look that is under way adds to the former

    def binding(self, drawn_w: float | None = None) -> Binding:
        """Tell whether the limit binds: by ``drawn_w``, a mean over a while, or by what the GPU draws now (W).

        Where limits are only advised, whether the one wanted would.
        """
        changes = self._lease().changes
        try:
            return self._patiently(lambda: self._judged(drawn_w, changes=changes))
        except TimeoutError:
            return judge(drawn_w=drawn_w, limit_w=None, enforced_w=None, reasons=None)

    def _judged(self, drawn_w: float | None, *, changes: bool) -> Binding:
        self._observe_if_settled()
        drawn_w = self._ask(Card.drawn_w) if drawn_w is None else drawn_w
        if not changes:
            return judge(drawn_w=drawn_w, limit_w=self._wanted_w, enforced_w=None, reasons=0)
        limit_w, enforced_w = self._ask(Card.limit_w), self._ask(Card.enforced_w)
        reasons = lasting(list(self._reasons))
        return judge(drawn_w=drawn_w, limit_w=limit_w, enforced_w=enforced_w, reasons=reasons)

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
        reasons = self._reasons
        bits = self._ask(Card.reasons)
        if bits is not None:
            reasons.append(bits)

    def _allow(self, card: Card, lease: Lease) -> float | None:
        self.found_w = card.limit_w() if lease.found is None else lease.found
        with suppress(NvmlError):
            self.default_w = card.default_w()
        lowest_w, highest_w = card.range_w()
        self.range_w = (lowest_w, highest_w if self._above_found else min(highest_w, self.found_w))
        return None if self._first is None else self._within_range(self._first)

    def _within_range(self, watts: float) -> float:
        """Return a limit as it may be set: what is beyond by less than drivers tell apart is taken for the bound."""
        lowest_w, highest_w = self.range_w
        if math.isnan(lowest_w):  # the driver did not answer, and nothing will be set
            return float(watts)
        if lowest_w - SAME_W <= watts <= highest_w + SAME_W:
            return float(min(max(watts, lowest_w), highest_w))
        message = f"GPU {self.gpu.uuid} takes limits of {lowest_w:g}-{highest_w:g} W here, not {watts:g} W"
        if watts > highest_w and not self._above_found:
            message += "; above the limit found only with PowerLimit(gpu, allow_above_found=True)"
        raise ControlError(message)
