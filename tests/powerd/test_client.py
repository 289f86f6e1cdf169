"""The back end `Powerd`: what users hold, through a helper that they may not replace."""

from __future__ import annotations

import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from powerd_site import ALICE, BOB, Person, Site, _Self, wait_until

from energy_plugins.cli.control_checks import control_checks
from energy_plugins.control import HeldLimit, PowerLimit, Standing
from energy_plugins.control.held import BACK_ENDS
from energy_plugins.control.journal import JOURNAL_VARIABLE
from energy_plugins.control.powerd_client import SOCKET_VARIABLE, Powerd, ask_powerd
from energy_plugins.errors import ControlError, JournalError, NvmlError, OwnedError, RefusedError
from energy_plugins.measure.devices import visible_gpus

People = Callable[..., Person]

pytest_plugins = ["powerd_fixtures"]


@pytest.fixture
def served(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv(SOCKET_VARIABLE, str(site.socket))
    monkeypatch.setenv(JOURNAL_VARIABLE, str(site.folder / "journal of people"))  # root's is not to be looked into
    site.start()
    return site


def train(watts: tuple[float, ...]) -> tuple[list[float], str, str]:
    """Hold limits one after another; return what the GPU said, the back end's name and how it ended."""
    (gpu, *_) = visible_gpus()
    _Self.site.simulation.gpus[0].launch(ops=1e9)
    seen = []
    with PowerLimit(gpu, back_ends=(Powerd(),)).at(watts=watts[0]) as limit:
        seen.append(_Self.site.limit_w())
        for watt in watts[1:]:
            assert limit.set(watt).standing is Standing.HELD
            assert limit.look().value == watt
            seen.append(_Self.site.limit_w())
        name = limit.back_end
    assert limit.restored is not None
    return seen, name, limit.restored.ending.value


def test_a_user_without_rights_holds_a_limit_that_is_put_back(served: Site, person: People) -> None:
    assert person(ALICE).call(train, (450.0, 400.0, 500.0)) == ([450.0, 400.0, 500.0], "powerd", "restored")
    assert (served.limit_w(), served.entries()) == (700.0, [])


class _Held:
    """What a process of a `Person` holds."""

    held: HeldLimit


def hold(watts: float) -> None:
    """Enter a block and stay in it."""
    (gpu, *_) = visible_gpus()
    _Self.site.simulation.gpus[0].launch(ops=1e9)
    _Held.held = PowerLimit(gpu, back_ends=(Powerd(),), look_every_s=0.2).at(watts=watts)
    _Held.held.__enter__()


def look() -> tuple[str, str]:
    status = _Held.held.look()
    return status.standing.value, status.why


def leave() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _Held.held.__exit__(None, None, None)
    assert _Held.held.restored is not None
    return _Held.held.restored.ending.value


def test_looks_are_the_heartbeat(served: Site, person: People) -> None:
    served.stop()
    served.configure(lease_s=1.0)
    served.start()
    alice = person(ALICE)
    alice.call(hold, 450.0)
    with pytest.raises(AssertionError, match="did not come true"):
        wait_until(lambda: served.limit_w() != 450.0, within_s=2.5)
    assert alice.call(leave) == "restored"


def test_a_killed_trainer_is_put_back(served: Site, person: People) -> None:
    alice = person(ALICE)
    alice.call(hold, 450.0)
    assert served.limit_w() == 450.0
    alice.kill()
    wait_until(lambda: served.limit_w() == 700.0, 2.0)


def test_a_lost_helper_is_told_and_what_it_put_back_is_seen(served: Site, person: People) -> None:
    alice = person(ALICE)
    alice.call(hold, 450.0)
    served.stop(signal.SIGKILL)
    assert alice.call(look)[0] == "lost"
    served.start()
    assert alice.call(leave) == "restored"


def test_a_helper_that_is_gone_for_good_leaves_it_said(served: Site, person: People) -> None:
    alice = person(ALICE)
    alice.call(hold, 450.0)
    served.stop(signal.SIGKILL)
    assert alice.call(leave) == "kept"


def test_others_changes_are_respected_and_told(served: Site, person: People) -> None:
    alice = person(ALICE)
    alice.call(hold, 450.0)
    served.set_limit_w(300.0)
    wait_until(lambda: served.entries() == [])
    wait_until(lambda: alice.call(look)[0] == "foreign")
    assert alice.call(leave) == "foreign"
    assert served.limit_w() == 300.0


def why_not(uid_gpu: int = 0) -> str:
    gpu = visible_gpus()[uid_gpu]
    try:
        PowerLimit(gpu, back_ends=(Powerd(),)).at(watts=450.0).__enter__()
    except ControlError as error:
        return f"{type(error).__name__}: {error}"
    return "allowed"


def test_refusals_are_the_errors_that_users_know(served: Site, person: People) -> None:
    alice, again, bob = person(ALICE), person(ALICE), person(BOB)
    alice.call(hold, 450.0)
    assert again.call(why_not).startswith("OwnedError")
    assert bob.call(why_not).startswith("OwnedError")
    assert bob.call(why_not, 1).startswith("RefusedError")
    served.stop()
    assert "no helper answers" in bob.call(why_not)


def test_a_narrower_range_of_the_site_is_told(served: Site, person: People) -> None:
    served.stop()
    served.configure("[[range]]\nmin_w = 500\nmax_w = 600\n")
    served.start()
    alice = person(ALICE)
    alice.call(hold, 450.0)
    assert served.limit_w() == 500.0
    assert "the site has 500-600 W" in alice.call(told)
    assert alice.call(leave) == "restored"


def told() -> str:
    return str(_Held.held.set(450.0).why)


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Listen where the helper should, and answer everything with some bytes."""
    path = tmp_path / "socket"
    monkeypatch.setenv(SOCKET_VARIABLE, str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve(answer: bytes) -> None:
            def once() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 10)
                    connection.sendall(answer)

            threading.Thread(target=once, daemon=True).start()

        yield serve


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ControlError),
        (b"what?\n", ControlError),
        (b"[]\n", ControlError),
        (b'{"ok": 1}\n', ControlError),
        (b'{"ok": true}\n', ControlError),
        (b'{"ok": true, "found_w": "x"}\n', ControlError),
        (b"x" * 100_000, ControlError),
        (b'{"ok": false}\n', ControlError),
        (b'{"ok": false, "error": "owned", "why": "w", "pid": 7}\n', OwnedError),
        (b'{"ok": false, "error": "journal", "why": "w"}\n', JournalError),
        (b'{"ok": false, "error": "driver", "why": "w"}\n', NvmlError),
        (b'{"ok": false, "error": "too_often", "why": "w"}\n', RefusedError),
        (b'{"ok": false, "error": "full", "why": "w"}\n', RefusedError),
    ],
)
def test_whatever_answers_is_an_error_that_users_know(
    simulation: object, impostor: Callable[[bytes], None], answer: bytes, error: type[Exception]
) -> None:
    impostor(answer)
    (gpu,) = visible_gpus()
    with pytest.raises(error):
        PowerLimit(gpu, back_ends=(Powerd(),)).at(watts=450.0).__enter__()


def test_the_helper_is_asked_after_the_driver_and_before_only_advising() -> None:
    assert [back_end.name for back_end in BACK_ENDS] == ["NVML", "powerd", "advice"]


def test_the_doctor_asks_the_helper_where_it_may_not_set_limits_itself(served: Site, person: People) -> None:
    alice = person(ALICE)
    assert alice.call(ask_powerd, served.gpu) == "not now: no process of yours computes on the GPU"
    alice.compute()
    assert alice.call(ask_powerd, served.gpu) == "yes: you alone compute on it"
    (check, *_) = alice.call(says_of_limits)
    assert check == ("ok", "powerd; yes: you alone compute on it")
    served.stop()
    (check, *_) = alice.call(says_of_limits)
    assert check == ("warning", "nobody: limits are only advised")


def says_of_limits() -> list[tuple[str, str]]:
    (gpu, *_) = visible_gpus()
    return [(check.status.value, check.found) for check in control_checks(gpu)]
