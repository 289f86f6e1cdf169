"""A limit inside its block: set, read back, changed, judged; what others did is respected."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pynvml
import pytest
from controlling import FOUND_W, handle, journal_of, limit_w, operator_sets, seconds_until, watchdogs

from energy_plugins import visible_gpus
from energy_plugins.control import Advise, DirectNvml, Knob, PowerLimit, Request, Standing
from energy_plugins.control.binding import judge
from energy_plugins.control.journal import Journal
from energy_plugins.control.nvml import IDLE_REASON, POWER_CAP_REASON, Nvml
from energy_plugins.control.restore import Ending, replay
from energy_plugins.errors import ControlError, DeviceError, NvmlError, RefusedError
from energy_plugins.measure.devices import Gpu
from energy_plugins.testing import (
    Constant,
    ForeignLimit,
    GpuLost,
    Hang,
    Ignored,
    NoPermission,
    NotSupported,
    Simulation,
)

Simulated = Callable[..., Simulation]
STEP_OPS = 8e12


@pytest.fixture
def gpu(simulation: Simulation) -> Gpu:
    """Give a GPU on which an operator has set a limit."""
    assert simulation.gpus
    operator_sets(FOUND_W)
    (found,) = visible_gpus()
    return found


def test_constructing_opens_nothing() -> None:
    gpu = Gpu("GPU-0", 0, "none", "none")
    PowerLimit(gpu).at(watts=400)
    with pytest.raises((DeviceError, OSError, NvmlError)), PowerLimit(gpu).at(watts=400):
        pass


def test_what_was_found_is_put_back_and_not_the_default(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu).at(watts=450) as limit:
        assert limit_w() == 450
        assert (limit.found_w, limit.default_w, limit.range_w) == (FOUND_W, 700, (200, FOUND_W))
        assert (limit.back_end, limit.check(), limit.status.value) == ("NVML", Standing.HELD, 450)
        assert journal_of(simulation) == [gpu.uuid]
    assert limit_w() == FOUND_W
    assert limit.restored is not None
    assert limit.restored.ending is Ending.RESTORED
    assert (journal_of(simulation), watchdogs(os.getpid())) == ([], [])
    assert limit.check() is Standing.ENDED


def test_it_may_be_changed_many_times(gpu: Gpu) -> None:
    with PowerLimit(gpu).at() as limit:
        assert limit_w() == FOUND_W
        for watts in (600, 400, 200, 333.25, FOUND_W, 500):
            assert limit.set(watts).value == watts == limit_w()
    assert limit_w() == FOUND_W


@pytest.mark.parametrize("watts", [0, 199, 651, 700, 10_000])
def test_out_of_range_nothing_is_changed(gpu: Gpu, simulation: Simulation, watts: float) -> None:
    with pytest.raises(ControlError, match="takes limits of 200-650 W here"), PowerLimit(gpu).at(watts=watts):
        pass
    with PowerLimit(gpu).at(watts=450) as limit:
        with pytest.raises(ControlError, match="takes limits"):
            limit.set(watts)
        assert limit_w() == 450
    assert (limit_w(), journal_of(simulation)) == (FOUND_W, [])


def test_no_limit_is_above_the_one_found_by_a_hair(gpu: Gpu) -> None:
    with PowerLimit(gpu).at(watts=650.4) as limit:
        assert (limit.status.value, limit_w()) == (FOUND_W, FOUND_W)
        assert limit.set(199.7).value == 200
        assert limit.set(650.5).value == FOUND_W


def test_a_lease_has_the_bound_itself(gpu: Gpu, simulation: Simulation) -> None:
    lease = DirectNvml().take(Request(gpu=gpu, knob=Knob.POWER))
    with pytest.raises(ControlError, match="had 650 W"):
        lease.set(650.4)
    assert limit_w() == FOUND_W
    assert lease.set(450).value == 450
    assert lease.release().ending is Ending.RESTORED
    assert (limit_w(), journal_of(simulation)) == (FOUND_W, [])


def test_above_the_limit_found_only_in_so_many_words(gpu: Gpu) -> None:
    with PowerLimit(gpu, allow_above_found=True).at(watts=700):
        assert limit_w() == 700
    assert limit_w() == FOUND_W


def test_a_block_that_fails_while_it_begins_leaves_nothing(gpu: Gpu, simulation: Simulation) -> None:
    simulation.gpus[0].inject(Ignored("nvmlDeviceSetPowerManagementLimit"))
    with pytest.raises(ControlError, match="asked for 450 W and says 650 W"), PowerLimit(gpu).at(watts=450):
        pass
    assert (journal_of(simulation), watchdogs(os.getpid()), limit_w()) == ([], [], FOUND_W)


def test_a_change_that_reading_back_denies(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu).at(watts=450) as limit:
        simulation.gpus[0].inject(Ignored("nvmlDeviceSetPowerManagementLimit"))
        with pytest.raises(ControlError, match="asked for 300 W and says 450 W"):
            limit.set(300)
        simulation.gpus[0].heal()
    assert (limit_w(), journal_of(simulation)) == (FOUND_W, [])


def test_an_operators_later_change_stays(gpu: Gpu, simulation: Simulation) -> None:
    with (  # noqa: PT031 - the whole block is what warns
        pytest.warns(RuntimeWarning, match="changed the limit to 500 W"),
        PowerLimit(gpu, look_every_s=0.02).at(watts=450) as limit,
    ):
        operator_sets(500)
        seconds_until(lambda: limit.check() is Standing.FOREIGN)
        assert limit.set(300).standing is Standing.FOREIGN
        operator_sets(450)  # as we had it: it is theirs all the same
    assert (limit_w(), journal_of(simulation)) == (450, [])
    assert limit.restored is not None
    assert limit.restored.ending is Ending.FOREIGN


def test_an_operators_change_that_nobody_looked_at_stays(gpu: Gpu) -> None:
    with pytest.warns(RuntimeWarning, match="it is not put back"), PowerLimit(gpu).at(watts=450):
        operator_sets(500)
    assert limit_w() == 500


def test_another_limiter_is_respected(simulated: Simulated) -> None:
    """A board controller enforces less than is asked for: that is said, and ours does not bind."""
    simulated(Constant(350), faults=[ForeignLimit(350)])
    with PowerLimit(visible_gpus()[0]).at(watts=450) as limit:
        assert (limit.status.value, limit.status.enforced_w) == (450, 350)
        assert "another limiter holds the GPU at 350 W" in limit.status.why
        assert limit.binding().binds is False
        assert limit.set(300).enforced_w == 300


def test_whether_it_binds_is_seen(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu, look_every_s=0.05).at(watts=450) as limit:
        work_for(simulation, 0.8, ops=STEP_OPS)
        assert limit.binding().binds
        limit.set(FOUND_W)
        simulation.gpus[0].synchronize()
        work_for(simulation, 0.8, ops=STEP_OPS / 100, nbytes=2e9)
        not_binding = limit.binding(drawn_w=300)
        assert (not_binding.binds, not_binding.limit_w) == (False, FOUND_W)
        assert "not binding" in not_binding.why
        assert limit.binding(drawn_w=FOUND_W + 3).binds


def test_a_peak_does_not_bind_for_good(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu, look_every_s=0.02).at(watts=450) as limit:
        work_for(simulation, 0.8, ops=STEP_OPS)
        assert limit.binding(drawn_w=440).binds
        simulation.gpus[0].synchronize()
        time.sleep(0.8)
        assert limit.binding(drawn_w=120).binds is False


def work_for(simulation: Simulation, seconds: float, ops: float, nbytes: float = 0.0) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        simulation.gpus[0].launch(ops, nbytes, wait=True)


@pytest.mark.parametrize(
    ("drawn_w", "enforced_w", "reasons", "binds"),
    [
        (300, 450, 0, False),
        (300, 450, IDLE_REASON, False),
        (300, 450, POWER_CAP_REASON, True),
        (450, 450, 0, True),
        (460, 450, 0, True),
        (300, 450, None, None),
        (460, 450, None, True),
        (None, 450, POWER_CAP_REASON, None),
        (400, 400, POWER_CAP_REASON, False),
        (449, None, 0, False),
    ],
)
def test_binding(drawn_w: float | None, enforced_w: float | None, reasons: int | None, binds: bool | None) -> None:
    judged = judge(drawn_w=drawn_w, limit_w=450, enforced_w=enforced_w, reasons=reasons)
    assert judged.binds is binds
    assert judged.why


def test_without_permission_there_is_advice(simulated: Simulated) -> None:
    simulation = simulated(Constant(600), start_s=10, faults=[NoPermission()])
    with PowerLimit(visible_gpus()[0]).at(watts=450) as limit:
        assert (limit.check(), limit.back_end, limit_w()) == (Standing.ADVISED, "advice", 700)
        advice = limit.advice()
        assert advice is not None
        assert (advice.limit_w, advice.found_w, advice.would_bind) == (450, 700, True)
        assert advice.drawn_w == pytest.approx(600, rel=0.1)
        assert "Insufficient Permissions" in advice.why
        assert "root" in advice.remedy
        assert str(advice).startswith("a limit of 450 W would bind")
        limit.set(650)
        after = limit.advice()
        assert after is not None
        assert (after.limit_w, after.would_bind) == (650, False)
    assert (limit_w(), journal_of(simulation), watchdogs(os.getpid())) == (700, [], [])


@pytest.mark.parametrize("fault", [NoPermission(), NotSupported("nvmlDeviceSetPowerManagementLimit")])
def test_where_advice_is_not_wanted_a_refusal_is_an_error(
    simulated: Simulated, fault: NoPermission | NotSupported
) -> None:
    simulation = simulated(faults=[fault])
    limit = PowerLimit(visible_gpus()[0], back_ends=(DirectNvml(),))
    with pytest.raises(RefusedError, match="the driver refuses") as caught, limit.at(watts=450):
        pass
    assert caught.value.remedy
    assert journal_of(simulation) == []


def test_advice_alone_touches_nothing(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu, back_ends=(Advise(),)).at(watts=450) as limit:
        assert limit_w() == FOUND_W
        assert "only advice was asked for" in str(limit.advice())
    assert not simulation.journal.exists()


def test_where_limits_are_set_there_is_no_advice(gpu: Gpu) -> None:
    with PowerLimit(gpu).at(watts=450) as limit:
        assert limit.advice() is None


def test_a_slice_of_a_gpu_is_not_limited(gpu: Gpu) -> None:
    with PowerLimit(replace(gpu, mig="MIG-1")).at(watts=450) as limit:
        assert limit.check() is Standing.ADVISED
        assert "MIG" in limit.status.why
        assert limit_w() == FOUND_W


@pytest.mark.parametrize("spoil", ["a file", "open to others", "somebody else's"])
def test_without_a_journal_nothing_is_changed(gpu: Gpu, simulation: Simulation, spoil: str) -> None:
    if spoil == "a file":
        simulation.journal.write_text("")
    else:
        simulation.journal.mkdir(mode=0o700)
    if spoil == "open to others":
        simulation.journal.chmod(0o750)
    if spoil == "somebody else's":
        if os.geteuid() != 0:
            pytest.skip("needs root to give it away")
        os.chown(simulation.journal, 12345, -1)
    with PowerLimit(gpu).at(watts=450) as limit:
        assert limit.check() is Standing.ADVISED
        assert "journal" in limit.status.why
        assert limit_w() == FOUND_W


@pytest.mark.parametrize("by", ["the watchdog", "doctor", "the next block"])
def test_a_lost_gpu_stays_in_the_journal(gpu: Gpu, simulation: Simulation, by: str) -> None:
    """When it is there again, what was found is put back, though this process lives."""
    with (  # noqa: PT031 - the whole block is what warns
        pytest.warns(RuntimeWarning, match=r"stays in the journal.*doctor --restore"),
        PowerLimit(gpu, look_every_s=0.02).at(watts=450) as limit,
    ):
        simulation.gpus[0].inject(GpuLost())
        seconds_until(lambda: limit.check() is Standing.LOST)
        with pytest.raises(NvmlError, match="lost"):
            limit.set(300)
    assert limit.restored is not None
    assert limit.restored.ending is Ending.KEPT
    assert journal_of(simulation) == [gpu.uuid]
    (watchdog,) = watchdogs(os.getpid())
    if by == "the watchdog":
        simulation.gpus[0].heal()
        seconds_until(lambda: limit_w() == FOUND_W, 5.0)
        seconds_until(lambda: journal_of(simulation) == [])
        os.kill(watchdog, 9)
        return
    os.kill(watchdog, 9)
    seconds_until(lambda: not watchdogs(os.getpid()))
    simulation.gpus[0].heal()
    assert limit_w() == 450
    if by == "doctor":
        with Journal(simulation.journal) as journal, Nvml(simulation.nvml_path) as nvml:
            (restored,) = replay(journal, nvml.card)
            assert restored.ending is Ending.RESTORED
    else:
        with PowerLimit(gpu).at(watts=600) as second:
            assert (second.found_w, limit_w()) == (FOUND_W, 600)
    assert (limit_w(), journal_of(simulation)) == (FOUND_W, [])


@pytest.mark.parametrize("first", ["the next block", "the watchdog"])
def test_whoever_put_a_lost_gpu_back_the_next_block_leaves_no_watchdog(
    gpu: Gpu, simulation: Simulation, first: str
) -> None:
    with pytest.warns(RuntimeWarning, match="stays in the journal"), PowerLimit(gpu).at(watts=450):
        simulation.gpus[0].inject(GpuLost())
    (watchdog,) = watchdogs(os.getpid())
    simulation.gpus[0].heal()
    if first == "the watchdog":
        seconds_until(lambda: journal_of(simulation) == [])
    with PowerLimit(gpu).at(watts=600) as second:
        assert (second.found_w, limit_w()) == (FOUND_W, 600)
        assert watchdogs(os.getpid()) == [watchdog]
    assert (limit_w(), journal_of(simulation), watchdogs(os.getpid())) == (FOUND_W, [], [])


def test_a_watchdog_stays_while_one_gpu_of_two_is_not_put_back(simulated: Simulated) -> None:
    simulation = simulated(count=2)
    first, second = visible_gpus()
    operator_sets(FOUND_W, 1)
    with pytest.warns(RuntimeWarning, match="stays in the journal"), PowerLimit(first).at(watts=450):
        simulation.gpus[0].inject(GpuLost())
    (watchdog,) = watchdogs(os.getpid())
    with PowerLimit(second).at(watts=450):
        assert watchdogs(os.getpid()) == [watchdog]
    assert watchdogs(os.getpid()) == [watchdog]
    simulation.gpus[0].heal()
    seconds_until(lambda: journal_of(simulation) == [])
    with PowerLimit(second).at(watts=450):
        pass
    assert (limit_w(1), watchdogs(os.getpid())) == (FOUND_W, [])


def test_a_forked_child_has_nothing_to_put_back(gpu: Gpu) -> None:
    with PowerLimit(gpu).at(watts=450) as limit:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pytest.raises(ControlError, match="by the process that entered it"):
                    limit.set(300)
                limit.__exit__(None, None, None)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert limit_w() == 450
    assert limit_w() == FOUND_W


def test_it_is_over_after_its_block(gpu: Gpu) -> None:
    with PowerLimit(gpu).at(watts=450) as limit:
        pass
    for use in (lambda: limit.set(300), limit.look, limit.binding, limit.__enter__):
        with pytest.raises(ControlError):
            use()


def test_a_forgotten_one_says_so(gpu: Gpu) -> None:
    with pytest.warns(ResourceWarning, match="use `with`"):  # noqa: PT031 - the whole block is what warns
        limit = PowerLimit(gpu).at(watts=450).__enter__()
        lease = limit._lease()
        del limit
        gc.collect()
    lease.release()
    assert limit_w() == FOUND_W


@pytest.mark.slow
def test_a_driver_that_hangs_does_not_hold_up_the_training(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu).at(watts=450) as limit:
        simulation.gpus[0].inject(Hang("nvmlDeviceSetPowerManagementLimit", 60))
        with pytest.raises(ControlError, match="has not answered for 10 s"):
            limit.set(300)
        simulation.gpus[0].heal()
    assert limit_w() == FOUND_W


@pytest.mark.slow
def test_where_the_driver_hangs_as_it_begins_a_training_goes_on_with_advice(gpu: Gpu, simulation: Simulation) -> None:
    """What the driver does when it wakes is undone."""
    simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerManagementLimit", 60))
    began_s = time.monotonic()
    with PowerLimit(gpu).at(watts=450) as limit:
        assert time.monotonic() - began_s < 12
        assert (limit.check(), limit.back_end) == (Standing.ADVISED, "advice")
        assert limit.set(400).standing is Standing.ADVISED
        assert "has not answered for 10 s" in limit.look().why
        assert limit.binding().binds is None
        assert "nan" not in str(limit.advice())
        simulation.gpus[0].heal()
        assert_late_work_is_undone(simulation)
    simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerManagementLimit", 60))
    with pytest.raises(ControlError, match="not answered"), PowerLimit(gpu, back_ends=(DirectNvml(),)).at(watts=450):
        pass
    simulation.gpus[0].heal()
    assert_late_work_is_undone(simulation)


def assert_late_work_is_undone(simulation: Simulation) -> None:
    seconds_until(lambda: all(thread.name != "energy-aside" for thread in threading.enumerate()))
    seconds_until(lambda: (limit_w(), journal_of(simulation), watchdogs(os.getpid())) == (FOUND_W, [], []))


@pytest.mark.slow
def test_a_look_at_a_driver_that_hangs_comes_back(gpu: Gpu, simulation: Simulation) -> None:
    with PowerLimit(gpu, look_every_s=60).at(watts=450) as limit:
        simulation.gpus[0].inject(Hang("nvmlDeviceGetEnforcedPowerLimit", 60))
        looks: list[object] = []
        asking = [
            threading.Thread(target=lambda: looks.append(limit.look().standing)),
            threading.Thread(target=lambda: looks.append(limit.binding().binds)),
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(12)
        assert set(looks) == {Standing.LOST, None}
        simulation.gpus[0].heal()
    assert limit_w() == FOUND_W


def test_an_operator_who_is_quicker_than_the_reading_is_respected(gpu: Gpu, simulation: Simulation) -> None:
    with (  # noqa: PT031 - the whole block is what warns
        pytest.warns(RuntimeWarning, match="changed the limit to 500 W"),
        PowerLimit(gpu).at(watts=450) as limit,
    ):
        simulation.gpus[0].inject(Hang("nvmlDeviceGetPowerManagementLimit", 1))
        setting = threading.Thread(target=limit.set, args=(300,))
        setting.start()
        seconds_until(lambda: enforced_w() == 300)
        operator_sets(500)
        setting.join()
        assert limit.check() is Standing.FOREIGN
        simulation.gpus[0].heal()
    assert (limit_w(), journal_of(simulation)) == (500, [])


def enforced_w() -> float:
    with handle() as gpu:
        return float(pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)) / 1e3


def test_in_virtual_time_it_looks_at_its_deadlines(simulated: Simulated) -> None:
    simulation = simulated(virtual=True)
    with (  # noqa: PT031 - the whole block is what warns
        pytest.warns(RuntimeWarning, match="not put back"),
        PowerLimit(visible_gpus()[0]).at(watts=450) as limit,
    ):
        simulation.advance(12)
        assert limit.check() is Standing.HELD
        operator_sets(500)
        simulation.advance(6)
        assert limit.check() is Standing.FOREIGN
