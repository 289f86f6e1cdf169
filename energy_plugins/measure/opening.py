"""What a run opens before its window: the plan of its sensors, the sampler, CUDA. A driver that hangs is given up."""

from __future__ import annotations

from energy_plugins import _native
from energy_plugins.measure.cpu import CpuPlan
from energy_plugins.measure.drivers import CUDA_VARIABLE, Clock, Drivers
from energy_plugins.measure.notices import Notices
from energy_plugins.measure.patience import Aside, within
from energy_plugins.measure.sensors import DRAIN_PERIOD_NS, SensorPlan

_PATIENCE_S = 2.0
"""How long `EnergyMeter.start` waits for a driver that does not answer, twice at most."""


def await_plan(asked: Aside[SensorPlan], notices: Notices) -> SensorPlan:
    """Return what the driver answers, and say what it lacks.

    Raises:
        DeviceError: it lacks a GPU or a sensor that was named.
    """
    try:
        plan = asked.within(_PATIENCE_S)
    except TimeoutError as error:
        plan = silent_driver(error)
    if plan.nothing_because is not None:
        notices.say(plan.nothing_because)
    for gpu in plan.blind:
        why = "; ".join(sorted(set(plan.reasons[gpu].values())))
        notices.say(f"{gpu}: the driver gives no reading of power or energy, so nothing is measured ({why})")
    return plan


def start_sampler(
    plan: SensorPlan, cpu: CpuPlan, clock: Clock, marks: _native.MarkLog, *, activity: bool
) -> _native.Sampler | None:
    """Return a sampler of all that there is to read, at work; None where there is nothing.

    Raises:
        TimeoutError: the driver does not answer.
    """
    if plan.nvml is None and not cpu.sensors:
        return None
    sampler = _native.Sampler(
        plan.nvml,
        list(plan.sampled),
        clock.native,
        marks=marks,
        sources=[plan.power[uuid].source for uuid in plan.sampled],
        means=[plan.second(uuid) for uuid in plan.sampled],
        drain_period_ns=DRAIN_PERIOD_NS,
        counter_period_ns=plan.counter_period_ns,
        cpu=[sensor.counter for sensor in cpu.sensors],
        activity=activity,
    )
    within(_PATIENCE_S, lambda: sampler.start(threaded=clock.threaded))
    return sampler


def silent_driver(error: TimeoutError) -> SensorPlan:
    """Return the plan for a driver that does not answer."""
    return SensorPlan.nothing(f"the NVIDIA driver hangs: {error}")


def open_marks(drivers: Drivers, plan: SensorPlan, notices: Notices) -> _native.MarkLog:
    """Return the log of marks. Where there is no CUDA they are host times, which is all there is to know.

    The system's own CUDA is opened once this process has loaded it: until then nothing can run on it, and it takes some
    megabytes. One that is named is opened at once, so that a wrong name is noticed.
    """
    clock = drivers.clock.native
    if drivers.cuda == Drivers.cuda:
        return _native.MarkLog.once_loaded(clock, drivers.cuda)
    try:
        return _native.MarkLog(clock, _native.Cuda(drivers.cuda))
    except OSError as error:
        if plan.sampled:  # without a GPU it says what has been said
            notices.say(f"{error}, which {CUDA_VARIABLE} names: marks are times of the host, not of the GPU")
        return _native.MarkLog(clock)
