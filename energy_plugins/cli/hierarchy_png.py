"""The picture of `energy-plugins hierarchy` as a PNG, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from energy_plugins.cli.hierarchy_view import View
from energy_plugins.measure.quantity import binary


def draw(view: View, path: Path) -> None:
    """Write a picture: bytes of each set against the micro-batch, both logarithmic, and the levels as lines across.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name in view.sets(1):
        points = [(size, found) for size in view.sizes if (found := view.sets(size)[name])]
        axes.plot([size for size, _ in points], [found for _, found in points], marker=".", label=name)
    for level in view.hierarchy.levels:
        axes.axhline(level.size_bytes, color="grey", linestyle="--", linewidth=1)
        axes.annotate(
            f"{level.name} {binary(level.size_bytes)}",
            (0.99, level.size_bytes),
            xycoords=("axes fraction", "data"),
            horizontalalignment="right",
            verticalalignment="bottom",
            color="grey",
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _place: binary(value))
    axes.set_xlabel("samples in a micro-batch")
    axes.set_ylabel("bytes worked on")
    axes.set_title(view.hierarchy.device)
    axes.legend()
    figure.savefig(path, format="png")
