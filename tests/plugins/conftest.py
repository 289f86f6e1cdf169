from __future__ import annotations

import pytest

pytest.register_assert_rewrite("energy_plugins.testing.contract")
