"""Joules for transformers: `EnergyCallback`, or ``report_to="energy"`` once this is imported, or `attach`."""

from typing import TYPE_CHECKING

try:
    import torch  # noqa: F401 - without it transformers has no Trainer
    import transformers
except ModuleNotFoundError as error:
    raise ImportError("transformers or torch is missing: pip install energy-plugins[transformers]") from error

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 17):
    raise ImportError(
        f"energy_plugins.transformers needs transformers 5.17 or newer, not {transformers.__version__}: "
        "pip install energy-plugins[transformers]"
    )

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from energy_plugins.transformers.callback import EnergyCallback, attach
from energy_plugins.transformers.micro_batch import MicroBatchCallback
from energy_plugins.transformers.power_limit import PowerLimitCallback

if TYPE_CHECKING:
    from energy_plugins.config import EnergyArguments
    from energy_plugins.transformers.hp_space import energy_hp_space

__all__ = [
    "EnergyArguments",
    "EnergyCallback",
    "MicroBatchCallback",
    "PowerLimitCallback",
    "attach",
    "energy_hp_space",
]

# What `report_to` may name; transformers has no public way to add to it.
INTEGRATION_TO_CALLBACK.setdefault("energy", EnergyCallback)

# Hidden from type checkers: to them it would make every misspelt name a valid one.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import what not every training needs when it is asked for."""
        if name == "EnergyArguments":
            from energy_plugins.config import EnergyArguments  # noqa: PLC0415 - see above

            return EnergyArguments
        if name == "energy_hp_space":
            from energy_plugins.transformers.hp_space import energy_hp_space  # noqa: PLC0415 - see above

            return energy_hp_space
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
