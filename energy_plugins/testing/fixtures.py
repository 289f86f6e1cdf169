"""The pytest fixture of those who test what they measure; pytest finds it through the entry point ``energy_plugins``.

Every pytest on a machine with this package imports this module, so all else is imported when the fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from energy_plugins.testing.simulation import Simulation


@pytest.fixture
def simulated_gpus() -> Iterator[Callable[..., Simulation]]:
    """Give `energy_plugins.testing.simulated_gpus` as a plain call whose simulation lasts until the test ends.

    ``def test_it(simulated_gpus): gpu = simulated_gpus(Constant(300), virtual=True).gpus[0]``
    """
    from energy_plugins.testing.simulation import simulated_gpus as simulate  # noqa: PLC0415 - see above

    with ExitStack() as until_the_end:
        yield lambda *args, **kwargs: until_the_end.enter_context(simulate(*args, **kwargs))
