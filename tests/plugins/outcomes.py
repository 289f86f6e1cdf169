"""What a training leaves behind: reports, warnings, and what its profile shows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_plugins.measure.report import Report
from energy_plugins.testing.contract import Wait

_SYNCHRONISING = (
    "Synchronize", "cudaMemcpy", "cudaEventQuery",  # where there is a GPU
    "aten::_local_scalar_dense",  # item(), float(), bool()
    "aten::resolve_conj",  # numpy(), tolist()
    "aten::nonzero",
)  # fmt: skip
"""What a profile calls that waits for the device; torch's own operations are the same ones on a CPU."""
_WAITING: list[tuple[Any, str]] = [
    (torch.cuda, "synchronize"),
    (torch.cuda.Event, "synchronize"),
    (torch.cuda.Event, "query"),
    (torch.cuda.Stream, "synchronize"),
    (torch.accelerator, "synchronize"),
    (torch.Tensor, "cpu"),
    (torch.Tensor, "to"),
]
"""What no profile of a CPU shows, or not apart from what waits for nothing."""
_ON_HOST = "_asked_for_on_the_host"


def load(folder: Path, number: int = 1) -> Report:
    return Report.load(folder / "energy" / f"run-{number}")


def load_if_any(folder: Path) -> Report | None:
    return load(folder) if (folder / "energy" / "run-1" / "report.json").exists() else None


def counts(report: Report) -> dict[str, int]:
    return {phase.kind: phase.count for phase in report.phases}


@contextmanager
def synchronisations() -> Iterator[Counter[str]]:
    """Count the calls that wait for the device, or copy to or from it, or would if there were one."""
    found: Counter[str] = Counter()
    with ExitStack() as stack:
        for owner, name in _WAITING:
            original = getattr(owner, name)
            stack.callback(partial(_put_back, owner, name, vars(owner).get(name)))
            setattr(owner, name, _counting(found, f"{owner.__name__}.{name}", original))
        stack.callback(partial(_put_back, torch, "tensor", torch.tensor))
        torch.tensor = _noting_the_host(torch.tensor)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            yield found
    names = [event.name for event in profile.events() or ()]
    found.update(name for name in names if any(part in name for part in _SYNCHRONISING))


def _counting(found: Counter[str], name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    is_possible = name.startswith("Tensor") or torch.cuda.is_available()

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        found[name] += not any(getattr(arg, _ON_HOST, False) for arg in args[:1])
        return original(*args, **kwargs) if is_possible else None

    return call


def _noting_the_host(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Tell tensors that are asked for on the host: whatever a training uses, they are there, and nobody waits."""

    @wraps(original)
    def tensor(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = original(*args, **kwargs)
        setattr(made, _ON_HOST, str(kwargs.get("device")) == "cpu")
        return made

    return tensor


def _put_back(owner: Any, name: str, before: Any) -> None:
    if before is None:  # inherited
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def wait_for(tensor: torch.Tensor, ways: Sequence[Wait]) -> None:
    """Wait for the device in each of some ways."""
    for way in ways:
        match way:
            case Wait.NUMBER:
                tensor.sum().item()
            case Wait.COPY:
                tensor.detach().cpu()
            case Wait.EVENT:
                event: Any = torch.cuda.Event() if torch.cuda.is_available() else object()
                torch.cuda.Event.synchronize(event)
            case Wait.DEVICE:
                torch.cuda.synchronize()


@contextmanager
def our_warnings() -> Iterator[list[str]]:
    """Collect what would have been warned of measuring."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        yield texts
    texts += [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Have torch use one: small models are not faster with more, and their sums are rounded alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
