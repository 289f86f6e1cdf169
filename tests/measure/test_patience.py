from __future__ import annotations

import threading
import time

import pytest

from energy_plugins.measure.patience import Aside, within


def test_what_returns_in_time_is_returned() -> None:
    assert within(5.0, lambda: 7) == 7
    assert within(5.0, lambda: None) is None


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 // 0)


def test_what_hangs_is_left_behind_and_what_it_returns_is_dropped() -> None:
    let_go, dropped = threading.Event(), threading.Event()

    class Returned:
        def __del__(self) -> None:
            dropped.set()

    def work() -> Returned:
        let_go.wait(10)
        return Returned()

    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.05 s"):
        within(0.05, work)
    assert time.monotonic() - began_s < 1.0
    let_go.set()
    assert dropped.wait(2.0)


def test_work_aside_begins_before_its_result_is_asked_for() -> None:
    begun = threading.Event()
    aside = Aside(begun.set)
    assert begun.wait(5.0)
    assert aside.within(5.0) is None


def test_it_is_no_reason_to_stay_for_a_program_that_ends() -> None:
    with pytest.raises(TimeoutError):
        within(0.01, lambda: time.sleep(0.5))
    (aside,) = (thread for thread in threading.enumerate() if thread.name == "energy-aside")
    assert aside.daemon
    aside.join()
