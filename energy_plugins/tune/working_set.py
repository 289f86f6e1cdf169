"""How many bytes the parts of a training step work on, at every micro-batch.

The sets are those of BUTTER-E (arXiv:2403.08151). There, for a perceptron of widths w with P parameters of 4 bytes and
a batch of B: a layer l = 4 B max(w_i + w_(i+1)), the forward pass l + 4 P, the backward pass 8 P + 4 B sum(w). Here
they are traced, so they hold for any model and for the types of numbers that it really computes with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from energy_plugins.errors import ConfigError
from energy_plugins.tune.growth import Growth


class Part(StrEnum):
    """A part of a training step that works on a set of bytes of its own."""

    LAYER = "layer"
    """What the largest operation of the forward pass reads and writes, less what no sample adds to."""
    FORWARD = "forward"
    """That, and all parameters."""
    BACKWARD = "backward"
    """Parameters, their gradients, and what the forward pass kept for the backward pass."""
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    """What a step of the optimizer works on: parameters, gradients and its state."""


@dataclass(frozen=True, kw_only=True)
class WorkingSet:
    """The bytes that a training step works on, and those it needs at once."""

    layer_bytes_per_sample: float
    """Of the largest operation of the forward pass."""
    kept: Growth
    """What the forward pass keeps for the backward pass, the batch included."""
    parameter_bytes: int
    gradient_bytes: int
    optimizer_state_bytes: int | None
    """None where it could not be traced, with a note; 0 without an optimizer."""
    peaks: tuple[Growth, ...]
    """What is allocated at the fullest moments of a step of one micro-batch, parameters and optimizer included."""
    accumulating_peaks: tuple[Growth, ...]
    """The same where gradients of an earlier micro-batch are there."""
    notes: tuple[str, ...] = ()
    """How it was traced, where that was not as it should be, and what is left out."""

    @staticmethod
    def of(
        model: object,
        example_batch: object,
        optimizer: object = None,
        precision: str | None = None,
        *,
        device: object = None,
    ) -> WorkingSet:
        """Trace a forward and a backward pass of ``model``, at two sizes, and a step of its optimizer.

        Nothing is computed and nothing changes: the trace runs on tensors without data, which have the types and the
        device of the model's. A model that needs the values of its data is run for real instead, with a note, at the
        size of the example and half of it; parameters, gradients, buffers and random numbers stay as they are.

        Args:
            model: a `torch.nn.Module`, in the mode (training or evaluation) that is meant.
            example_batch: what its loader yields. A mapping is passed as keywords; of a list or tuple as many items as
                ``forward`` requires; anything else as it is. The loss is what ``forward`` returns as ``loss``, else its
                first tensor, summed up.
            optimizer: a `torch.optim.Optimizer` of its parameters; None for none.
            precision: as frameworks call it: "bf16", "bf16-mixed", "fp16" and "16-mixed" are autocast; None, "no", "32"
                and what ends in "-true" compute in the types that the parameters have.
            device: to trace on, such as "cuda"; None for where the model is.

        Raises:
            ConfigError: if one of them is not what it should be, or the model cannot be run on the example.
        """
        from energy_plugins.training.working_set.traced import traced  # noqa: PLC0415 - above: it knows torch

        return traced(model, example_batch, optimizer, precision, device)

    def bytes_at(self, size: int) -> Mapping[Part, int | None]:
        """Return the bytes of each set for a micro-batch of ``size`` samples; None for what is not known.

        Raises:
            ConfigError: if ``size`` is not above 0.
        """
        _check(size)
        return {part: None if (growth := self._growth(part)) is None else growth.at(size) for part in Part}

    def peak_bytes(self, size: int, *, accumulating: bool = True) -> int:
        """Return the most bytes that tensors take at once in a step, all of training's included.

        What libraries keep for themselves (a CUDA context, workspaces) and what an allocator holds but does not use
        come on top of it.

        Args:
            size: samples in a micro-batch.
            accumulating: whether the step has several micro-batches, so that gradients lie beside a forward pass.

        Raises:
            ConfigError: if ``size`` is not above 0.
        """
        _check(size)
        return max(growth.at(size) for growth in (self.accumulating_peaks if accumulating else self.peaks))

    def largest_within(self, size_bytes: float, part: Part | None = None) -> int | None:
        """Return the largest micro-batch of which ``part`` takes no more than so many bytes.

        Args:
            size_bytes: of a level of memory.
            part: None for all that is allocated at once in a step of several micro-batches.

        Returns:
            0 if not even one sample fits; None if every micro-batch does, or if the set is not known.
        """
        if part is None:
            growths = self.accumulating_peaks
        elif (known := self._growth(part)) is not None:
            growths = (known,)
        else:
            return None
        limits = [limit for growth in growths if (limit := growth.largest_within(size_bytes)) is not None]
        return min(limits, default=None)

    def _growth(self, part: Part) -> Growth | None:
        own, state = self.parameter_bytes + self.gradient_bytes, self.optimizer_state_bytes
        match part:
            case Part.LAYER:
                return Growth(0, self.layer_bytes_per_sample)
            case Part.FORWARD:
                return Growth(self.parameter_bytes, self.layer_bytes_per_sample)
            case Part.BACKWARD:
                return Growth(own + self.kept.fixed_bytes, self.kept.bytes_per_sample)
            case Part.GRADIENTS:
                return Growth(self.gradient_bytes, 0)
            case Part.OPTIMIZER:
                return None if state is None else Growth(own + state, 0)


def _check(size: int) -> None:
    if not 0 < size < math.inf:
        raise ConfigError(f"the micro-batch is {size!r}, but must be at least 1 sample")
