"""The fixtures of a site with a helper, and of people who talk to it: ``pytest_plugins = ["powerd_fixtures"]``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from powerd_site import Person, Site

from energy_plugins.testing import Simulation


@pytest.fixture
def site(simulated: Callable[..., Simulation]) -> Iterator[Site]:
    """A site with two GPUs; its helper is not started yet."""
    if os.geteuid() != 0:
        pytest.skip("the helper runs as root, and its peers as other users")
    # Not pytest's folder, into which other users may not look.
    with tempfile.TemporaryDirectory(prefix="energy-powerd-") as folder:
        site = Site(Path(folder), simulated(count=2))
        yield site
        site.end()


@pytest.fixture
def person(site: Site) -> Iterator[Callable[..., Person]]:
    """Make processes of users, which end with the test."""
    people: list[Person] = []

    def make(uid: int, prepare: Callable[[], None] | None = None) -> Person:
        people.append(Person(site, uid, prepare=prepare))
        return people[-1]

    yield make
    for one in people:
        one.end()
