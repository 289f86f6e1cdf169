"""Pictures for papers: real PNG files of the size of a page, one for each picture."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from _made_report import Made, made_report
from matplotlib.figure import Figure
from PIL import Image

from energy_plugins.errors import ReportError
from energy_plugins.measure.report import Report
from energy_plugins.report.drawing import draw
from energy_plugins.report.pictures.ranks import RankPicture, rank_picture


@pytest.fixture(scope="module")
def training() -> Report:
    return made_report(Made(steps=300, ranks=4, gpus=2))


def difference(one: Path, other: Path) -> float:
    """Return the share of pixels that are not the same."""
    first, second = (np.asarray(Image.open(path).convert("RGB"), np.int16) for path in (one, other))
    return float((np.abs(first - second).max(axis=2) > 8).mean())


def test_each_picture_is_a_file_and_a_simulated_run_says_so_across_it(training: Report, tmp_path: Path) -> None:
    paths = training.to_png(tmp_path / "pictures")
    assert [path.name for path in paths] == ["where.png", "power.png", "steps.png", "ranks.png", "limit-search.png"]
    for path in paths:
        with Image.open(path) as image:
            assert image.width == 1400
            assert image.height >= 700
            colours = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert colours is not None
            assert len(colours) > 50  # something is drawn
            assert "made-up training" in image.text["Title"]  # type: ignore[attr-defined] # of PNG images
    real = replace(training, simulated=False, ranks=None, power_limit=None).to_png(tmp_path / "real")
    for path, other in zip(paths[:3], real, strict=True):
        assert difference(path, other) > 0.01


def test_names_are_text_and_no_formulas(training: Report, tmp_path: Path) -> None:
    devices = tuple(replace(device, name="\x1b[31m\u202e\ud800") for device in training.devices)
    power = {"日本語 <b>&amp;": next(iter(training.power.values()))}
    named = replace(training, name="a$b_{c}^2 $\\frac", devices=devices, power=power, ranks=None, power_limit=None)
    assert len(named.to_png(tmp_path)) == 3


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    bare = Report(
        run_id="1",
        name="",
        node="n",
        started="",
        duration_s=0.0,
        complete=False,
        simulated=False,
        total_j=None,
        gpu_j={},
    )
    with pytest.raises(ReportError, match="there is nothing to draw of this report .Where the joules went: "):
        bare.to_png(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_place_that_cannot_be_written_is_named(training: Report, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ReportError, match=f"cannot write pictures to {tmp_path}/file{os.sep}below: Not a directory"):
        training.to_png(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_waits_that_are_more_than_a_rank_drew_make_no_bar_below_nothing(training: Report) -> None:
    picture = rank_picture(training)
    assert isinstance(picture, RankPicture)
    bars = tuple(replace(bar, energy_j=1.0, peer_wait_j=5.0) for bar in picture.bars)
    figure = Figure()
    draw(replace(picture, bars=bars), figure)
    assert all(bar.get_extents().y0 >= figure.axes[0].transData.transform((0, 0))[1] for bar in figure.axes[0].patches)
