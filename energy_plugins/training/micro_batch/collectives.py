"""Whether the passes of a training speak with other ranks by themselves: then no rank may run passes alone."""

from __future__ import annotations

from torch import distributed

SPEAKS = (
    "in their passes ranks tell each other something (torch.distributed, all_gather), so none may run other passes "
    "than the rest, not even to look whether its gradients are the same"
)


def collectives() -> int:
    """Return how many collectives this rank has begun so far, in all groups of ranks; 0 if it has nobody to talk to.

    Gloo and NCCL count them. Torch tells it in private places only, and not of every backend.
    """
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return 0
    from torch.distributed import distributed_c10d  # noqa: PLC0415 - a torch without it is built, too

    groups = list(distributed_c10d._world.pg_map)  # noqa: SLF001
    return sum(_begun(group) for group in groups)


def _begun(group: distributed.ProcessGroup) -> int:
    try:
        backends = {id(one): one for one in map(group._get_backend, group._device_types)}  # noqa: SLF001
        return sum(
            one._get_sequence_number_for_group()  # type: ignore[attr-defined] # noqa: SLF001
            for one in backends.values()
        )
    except (AttributeError, RuntimeError):
        return 0
