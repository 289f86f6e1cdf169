"""The trial of Ray Tune's that this process runs: who it is, where it is kept, and which GPUs it was given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
import ray.tune

from energy_plugins.errors import DeviceError
from energy_plugins.measure.devices import installed_gpus, select

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


@dataclass(frozen=True)
class OwnTrial:
    """A trial as its own process knows it."""

    id: str
    folder: str
    """Where the experiment keeps it, on ``files``."""
    files: FileSystem
    gpu_share: float
    """How many GPUs it asked Ray for; 0.5 is half of one, which another trial may have the rest of."""
    gpus: tuple[str, ...]
    """UUIDs of the GPUs that Ray gave it."""

    @property
    def has_whole_gpus(self) -> bool:
        """Whether Ray gives its GPUs to nobody else meanwhile."""
        return self.gpu_share >= 1 and math.isclose(self.gpu_share, round(self.gpu_share))


def own_trial() -> OwnTrial | None:
    """Return the trial that this process runs, None if it runs none."""
    if not ray.is_initialized():
        return None
    context = ray.tune.get_context()
    trial_id = context.get_trial_id()
    if trial_id is None:
        return None
    storage = context.get_storage()
    return OwnTrial(
        id=trial_id,
        folder=str(storage.trial_fs_path),
        files=storage.storage_filesystem,
        gpu_share=float(context.get_trial_resources().required_resources.get("GPU", 0.0)),
        gpus=_given_gpus(),
    )


def _given_gpus() -> tuple[str, ...]:
    """Return what Ray calls by number, or by UUID where the node's CUDA_VISIBLE_DEVICES did, by UUID."""
    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    try:
        return tuple(gpu.uuid for gpu in select(",".join(given), installed_gpus())) if given else ()
    except DeviceError:
        return ()  # whoever measures meets the same, and says so in the report
