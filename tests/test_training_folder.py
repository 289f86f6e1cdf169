"""Where reports go: a new folder for each run, inside the one that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from energy_plugins.measure.patience import within
from energy_plugins.training.folder import first_free, new_folder


def test_each_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    parent = tmp_path / "there" / "energy"
    assert [new_folder(parent, "run") for _ in range(3)] == [parent / f"run-{number}" for number in (1, 2, 3)]


def test_the_first_free_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "b").symlink_to("nowhere")
    assert [first_free(tmp_path, iter("abcd")).name for _ in range(3)] == ["a", "c", "d"]


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_parent_that_links_to_nowhere_is_an_error_and_no_endless_search(tmp_path: Path, inside: str) -> None:
    (tmp_path / "energy").symlink_to(tmp_path / "unmounted")
    with pytest.raises(FileExistsError):
        within(5.0, lambda: new_folder(tmp_path / "energy" / inside, "run"))


@pytest.mark.parametrize("name", ["../../climbs", "/climbs", "team/run", ".."])
def test_a_name_stays_inside(tmp_path: Path, name: str) -> None:
    folder = new_folder(tmp_path / "energy", name)
    assert folder.resolve().parent == (tmp_path / "energy").resolve()
    assert folder.is_dir()
