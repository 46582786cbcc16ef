"""Plans as pictures: times over length of prompt, link and degree; memory over context."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from krakenlm.bench.figures import WIRING_COLOURS
from krakenlm.files import whole_file
from krakenlm.plan.sweeps import MemoryCurve

_NOTE = "planned, not measured"
_STYLES = ("-", "--", ":", "-.")


class Curves(NamedTuple):
    """Milliseconds of several models over one thing.

    Attributes:
        heading: what varies, for the axis.
        places: its values.
        lines: a model's times by its label; None where it does not exist.
    """

    heading: str
    places: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]


def draw_curves(panels: Sequence[Curves], title: str, target: Path) -> None:
    """Time to the first token, a panel for each thing that varies.

    Args:
        panels: what varies.
        title: what was planned.
        target: the PNG.
    """
    figure = Figure(figsize=(4.6 * len(panels), 4.6), layout="constrained")
    columns = figure.subplots(1, len(panels), squeeze=False)[0]
    styles = _line_styles([label for panel in panels for label in panel.lines])
    for axes, panel in zip(columns, panels, strict=True):
        for label, values in panel.lines.items():
            shown = [(x, y) for x, y in zip(panel.places, values, strict=True) if y is not None]
            colour, style = styles[label]
            axes.plot(
                *zip(*shown, strict=True),
                style,
                color=colour,
                label=label,
                marker=".",
                linewidth=1.2,
            )
        _logarithmic(axes, panel.places)
        axes.set_yscale("log")
        axes.set_xlabel(panel.heading, fontsize=9)
        axes.set_ylabel("time to first token, ms", fontsize=9)
    _finish(figure, columns, title, target)


def draw_memory(curves: Sequence[MemoryCurve], limit: float, title: str, target: Path) -> None:
    """Weights and KV cache of a device over the context, a panel for each number of devices.

    Args:
        curves: a line each.
        limit: bytes that a device has for them.
        title: what was planned.
        target: the PNG.
    """
    degrees = list(dict.fromkeys(curve.devices for curve in curves))
    figure = Figure(figsize=(4.6 * len(degrees), 4.6), layout="constrained")
    columns = figure.subplots(1, len(degrees), squeeze=False, sharey=True)[0]
    styles = _line_styles([curve.label for curve in curves])
    for axes, degree in zip(columns, degrees, strict=True):
        for curve in curves:
            if curve.devices == degree:
                colour, style = styles[curve.label]
                totals = [(curve.weights + cache) / 2**30 for cache in curve.cache]
                axes.plot(
                    curve.contexts, totals, style, color=colour, label=curve.label, linewidth=1.2
                )
                axes.plot(curve.contexts[0], curve.weights / 2**30, ">", color=colour, markersize=5)
        axes.axhline(limit / 2**30, color="black", linewidth=0.8, linestyle=(0, (4, 3)))
        _logarithmic(axes, curves[0].contexts)
        axes.set_title(f"{degree} devices" if degree > 1 else "1 device", loc="left", fontsize=9)
        axes.set_xlabel("context, tokens", fontsize=9)
    columns[0].set_ylabel("GiB a device: weights (triangle) and KV cache", fontsize=9)
    _finish(figure, columns, title, target)


def _line_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour for each wiring, a style for each of its models."""
    found: dict[str, tuple[str, str]] = {}
    used: dict[str, int] = {}
    for label in dict.fromkeys(labels):
        wiring = re.split("[ /:]", label)[0]
        style = _STYLES[used.get(wiring, 0) % len(_STYLES)]
        used[wiring] = used.get(wiring, 0) + 1
        found[label] = WIRING_COLOURS.get(wiring, "black"), style
    return found


def _logarithmic(axes: Axes, places: Sequence[float]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places), [f"{place:g}" for place in places], fontsize=7, rotation=45)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def _finish(figure: Figure, columns: Sequence[Axes], title: str, target: Path) -> None:
    handles: dict[str, Any] = {}
    for axes in columns:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=7,
        frameon=False,
    )  # fmt: skip
    figure.suptitle(f"{title}\n{_NOTE}", fontsize=9)
    with whole_file(target) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None})
