"""What trials drew, as the folder of their experiment keeps it: a small file in each trial's own folder.

Ray keeps what a trial reports, and a trial that is killed between two reports reports no more. The file is written
every few seconds, and lies where Ray keeps results, which all nodes of a cluster share.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from pyarrow import fs

from energy_plugins.errors import ReportError
from energy_plugins.measure.json_section import parse, plain, read_fields

if TYPE_CHECKING:
    from ray.tune import Result

_NAME: Final = "energy.json"


@dataclass(frozen=True, kw_only=True)
class TrialEnergy:
    """What one trial drew until now, all attempts of Ray's at it included."""

    total_j: float
    duration_s: float
    """How long it was measured."""
    gpus: tuple[str, ...]
    """UUIDs of the GPUs that were measured."""
    shared_gpu: int
    """How many others were seen on these GPUs, or may have been: the joules are then those of all of them."""
    simulated: bool
    ended: bool
    """Whether it is the last word of an attempt; of one that was killed there is none."""


def write_energy(files: fs.FileSystem, folder: str, energy: TrialEnergy) -> None:
    """Write a trial's energy, at once. Raises OSError."""
    path = f"{folder}/{_NAME}"
    files.create_dir(folder, recursive=True)
    with files.open_output_stream(f"{path}.new") as stream:
        stream.write(json.dumps(plain(asdict(energy))).encode())
    files.move(f"{path}.new", path)


def read_energy(files: fs.FileSystem, folder: str) -> TrialEnergy | None:
    """Return what a trial drew, None if nobody knows. Raises OSError; ReportError if that is no energy of a trial."""
    path = f"{folder}/{_NAME}"
    try:
        with files.open_input_stream(path) as stream:
            text = stream.read()
    except FileNotFoundError:
        return None
    energy = TrialEnergy(**read_fields(TrialEnergy, parse(text, path)))
    if not (math.isfinite(energy.total_j) and energy.total_j >= 0):
        raise ReportError(f"{path} holds {energy.total_j} J, which no trial draws")
    return energy


def trial_energy(result: Result) -> TrialEnergy | None:
    """Return what a trial drew in all, None if nobody knows: its last report is a little older than its end.

    Raises as `experiment_energy_j`.
    """
    return read_energy(result.filesystem, result.path)


def experiment_energy_j(path: str | os.PathLike[str], files: fs.FileSystem | None = None) -> float:
    """Return what all trials of an experiment drew so far (J): running, stopped, failed and killed ones included.

    Args:
        path: of the experiment, ``ResultGrid.experiment_path``; a folder, or a URI such as ``s3://bucket/experiment``.
        files: the file system that it is on, ``ResultGrid.filesystem``, if that cannot be told from the path.

    Raises:
        ReportError: there is no such experiment, or a file in it is none of ours.
        OSError: it cannot be read.
    """
    folder = os.fspath(path)
    if files is None:
        files, folder = fs.FileSystem.from_uri(folder if "://" in folder else os.path.abspath(folder))  # noqa: PTH100 - as URIs
    try:
        found = files.get_file_info(fs.FileSelector(folder))
    except FileNotFoundError as error:
        raise ReportError(f"{path} is no folder of an experiment: give ResultGrid.experiment_path") from error
    trials = (read_energy(files, one.path) for one in found if one.type == fs.FileType.Directory)
    return math.fsum(energy.total_j for energy in trials if energy is not None)
