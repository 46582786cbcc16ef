"""Draw the figures of docs/architecture.md.

The timelines are not drawn by hand: the functions of ``krakenlm.model.wiring`` run with
blocks and a Reducer that count time instead of computing, so a figure shows what the code does.

    python scripts/draw_architecture.py [--check-png DIR]

``--check-png`` writes PNG copies to look at, beside the SVG files in docs/img.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from krakenlm.config import WIRINGS, WiringName
from krakenlm.model.wiring import WIRING_FUNCTIONS, run

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "img"
LAYERS = 3

# Lengths of the blocks, the same for all architectures and chosen to be read, not measured.
ATTENTION, FEED_FORWARD, CONJUNCTION = 3.0, 4.0, 0.9
FAST_ALLREDUCE, SLOW_ALLREDUCE = 2.0, 5.0

# Which wiring, with sums of one of how many groups of channels.
TITLES: dict[tuple[WiringName, int], str] = {
    ("standard", 1): "Standard tensor parallelism (Megatron-LM)",
    ("parallel", 1): "Parallel attention and feed-forward (GPT-J, PaLM)",
    ("ladder", 1): "Ladder Residual",
    ("kraken", 1): "Kraken",
    ("shared", 1): "Shared, kraken-shared, lagged",
    ("shared", 2): "Shared and kraken-shared, half of the channels a layer",
    ("lagged-layer", 1): "Lagged layer",
}
INK = "#222222"
COLOURS = {
    "attention": "#9ecae1",
    "feed_forward": "#c7e9c0",
    "both": "#b2dad0",
    "conjunction": "#dadaeb",
    "hidden": "#fdd0a2",
    "exposed": "#f16913",
}
RESIDUAL = "#6b6b6b"


class Span(NamedTuple):
    """A piece of work on one lane."""

    start: float
    end: float
    kind: str
    label: str


@dataclass
class Schedule:
    """What one device computes and what the link carries during one forward pass.

    Both devices compute the same blocks at the same time, so one clock serves for both.
    """

    allreduce: float = FAST_ALLREDUCE
    now: float = 0.0
    link_free: float = 0.0
    compute: list[Span] = field(default_factory=list)
    link: list[Span] = field(default_factory=list)

    def work(self, kind: str, label: str, length: float) -> None:
        """Compute for a while."""
        self.compute.append(Span(self.now, self.now + length, kind, label))
        self.now += length

    def send(self, share: float) -> float:
        """Begin an AllReduce of that share of the channels; returns when it will be there."""
        start = max(self.now, self.link_free)
        self.link_free = start + share * self.allreduce
        self.link.append(Span(start, self.link_free, "", ""))
        return self.link_free

    def exposed(self, span: Span) -> bool:
        """Whether no compute runs on the device while this AllReduce is under way."""
        return not any(work.start < span.end and span.start < work.end for work in self.compute)

    def parts(self, span: Span) -> list[Span]:
        """An AllReduce cut into the times when the device computes and when it waits."""
        busy = [(work.start, work.end) for work in self.compute]
        edges = {edge for pair in busy for edge in pair if span.start < edge < span.end}
        cuts = sorted({span.start, span.end} | edges)
        found: list[Span] = []
        for start, end in pairwise(cuts):
            middle = (start + end) / 2
            beside = any(begin < middle < done for begin, done in busy)
            kind = "hidden" if beside else "exposed"
            if found and found[-1].kind == kind:
                start = found.pop().start
            found.append(Span(start, end, kind, ""))
        return found


class _Streams(NamedTuple):
    """Stands for a tensor of that share of the channels; the wirings only add and pass it on."""

    share: float = 1.0

    def __add__(self, other: Any) -> Any:
        return self


class _Message(NamedTuple):
    """Stands for the channels that a sum carries: one group of several."""

    parts: int

    def of(self, x: _Streams) -> _Streams:
        return _Streams(x.share / self.parts)

    def add(self, x: _Streams, total: _Streams) -> _Streams:
        return x

    def renew(self, carried: _Streams, new: _Streams) -> _Streams:
        return new


class _Block:
    def __init__(self, schedule: Schedule, index: int, message: _Message) -> None:
        self.message = message
        self._schedule = schedule
        self._number = index + 1

    def keep(self, x: _Streams) -> _Streams:
        return x

    def attend(self, x: _Streams) -> _Streams:
        self._schedule.work("attention", f"A{self._number}", ATTENTION)
        return x

    def feed(self, x: _Streams) -> _Streams:
        self._schedule.work("feed_forward", f"F{self._number}", FEED_FORWARD)
        return x

    def attend_and_feed(self, x: _Streams) -> _Streams:
        number = self._number
        self._schedule.work("both", f"A{number} + F{number}", ATTENTION + FEED_FORWARD)
        return x


class _Pending(NamedTuple):
    schedule: Schedule
    there: float
    total: _Streams

    def wait(self) -> _Streams:
        self.schedule.now = max(self.schedule.now, self.there)
        return self.total


class _CountingReducer:
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def begin(self, branches: _Streams) -> _Pending:
        return _Pending(self._schedule, self._schedule.send(branches.share), branches)


def simulate(
    wiring: WiringName,
    layers: int = LAYERS,
    allreduce: float = FAST_ALLREDUCE,
    message_parts: int = 1,
) -> Schedule:
    """Run one forward pass of an architecture on two devices, counting time only."""
    schedule = Schedule(allreduce)
    message = _Message(message_parts)
    blocks: Any = [_Block(schedule, index, message) for index in range(layers)]
    reducer: Any = _CountingReducer(schedule)

    def join(y: Any) -> Any:
        if WIRINGS[wiring].conjunction:
            schedule.work("conjunction", "W", CONJUNCTION)
        return y

    x: Any = _Streams()
    steps: Any = WIRING_FUNCTIONS[wiring](blocks, x, reducer, join)
    run(steps)
    return schedule


def draw_timelines(allreduce: float) -> Figure:
    """Which work and which AllReduce runs when, for a whole model of ``LAYERS`` layers."""
    figure: Figure
    figure, axes = plt.subplots(len(TITLES), 1, figsize=(10, 1.9 * len(TITLES)), sharex=True)
    schedules = [
        simulate(wiring, allreduce=allreduce, message_parts=parts) for wiring, parts in TITLES
    ]
    for axis, schedule, title in zip(axes, schedules, TITLES.values(), strict=True):
        _draw_schedule(axis, schedule, title)
    longest = max(schedule.now for schedule in schedules)
    axes[-1].set_xlim(0, longest * 1.01)
    axes[-1].set_xlabel("time (arbitrary units)", color=INK)
    handles = [
        Rectangle((0, 0), 1, 1, **_look(kind))
        for kind in ("attention", "feed_forward", "conjunction", "hidden", "exposed")
    ]
    labels = [
        "A: attention",
        "F: feed-forward",
        "W: conjunction",
        "AllReduce beside compute",
        "AllReduce, devices wait",
    ]
    figure.legend(handles, labels, loc="upper center", ncol=5, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    return figure


def _draw_schedule(axis: Axes, schedule: Schedule, title: str) -> None:
    lanes = {"device 0": 2.0, "link": 1.0, "device 1": 0.0}
    for lane in ("device 0", "device 1"):
        for span in schedule.compute:
            _draw_span(axis, span, lanes[lane])
    for span in schedule.link:
        for part in schedule.parts(span):
            _draw_span(axis, part, lanes["link"])
    exposed = sum(schedule.exposed(span) for span in schedule.link)
    axis.set_title(
        f"{title}:  {len(schedule.link)} AllReduces, {exposed} with nothing to hide behind",
        loc="left",
        fontsize=10,
        color=INK,
    )
    axis.axvline(schedule.now, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axis.set_yticks(list(lanes.values()), list(lanes), color=INK, fontsize=9)
    axis.set_ylim(-0.5, 2.5)
    axis.tick_params(length=0)
    axis.set_xticks([])
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _draw_span(axis: Axes, span: Span, y: float) -> None:
    length = span.end - span.start
    axis.add_patch(Rectangle((span.start, y - 0.4), length, 0.8, **_look(span.kind)))
    if span.label:
        middle = span.start + length / 2
        axis.text(middle, y, span.label, ha="center", va="center", fontsize=8, color=INK)


def _look(kind: str) -> dict[str, Any]:
    # Hatched as well as coloured, so that the difference does not hang on colour alone.
    hatch = "////" if kind == "exposed" else None
    return {"facecolor": COLOURS[kind], "edgecolor": INK, "linewidth": 0.6, "hatch": hatch}


def draw_layer() -> Figure:
    """The dataflow of one Kraken layer behind the first, on two devices."""
    figure: Figure
    figure, axis = plt.subplots(figsize=(10, 5.4))
    axis.set_xlim(0, 20.4)
    axis.set_ylim(-5.4, 5.4)
    axis.axis("off")
    for device, up in ((0, 1), (1, -1)):
        axis.add_patch(
            FancyBboxPatch(
                (0.2, 1.35 if up > 0 else -5.05),
                20.0,
                3.7,
                boxstyle="round,pad=0,rounding_size=0.25",
                facecolor="#f7f7f7",
                edgecolor="#bbbbbb",
                linewidth=0.8,
            )
        )
        axis.text(
            0.45, up * 4.75, f"device {device}", ha="left", va="center", fontsize=9, color=INK
        )
        _draw_sublayer(axis, device, up)
    _box(axis, 5.3, 0.0, 9.4, 1.1, f"AllReduce    S = y{_sub(0)} + y{_sub(1)}", COLOURS["hidden"])
    axis.text(
        10.6,
        0.0,
        "in flight while\nattention runs",
        ha="left",
        va="center",
        fontsize=9,
        color=INK,
    )
    figure.tight_layout(pad=0.3)
    return figure


def _draw_sublayer(axis: Axes, device: int, up: int) -> None:
    """One sub-layer's row; ``up`` mirrors it for the second device."""
    main, rail = up * 2.4, up * 4.0
    y_in, norm_1, attention, z, norm_2, feed, y_out = 1.3, 3.7, 6.1, 9.4, 11.7, 14.1, 17.2
    fork = 7.8
    index = _sub(device)
    _box(axis, y_in, main, 1.5, 1.0, f"y{index}", "white")
    _box(axis, norm_1, main, 1.5, 1.0, f"LN1{index}", "white")
    _box(axis, attention, main, 1.9, 1.0, f"Attn{index}", COLOURS["attention"])
    _box(axis, norm_2, main, 1.5, 1.0, f"LN2{index}", "white")
    _box(axis, feed, main, 1.9, 1.0, f"FFN{index}", COLOURS["feed_forward"])
    _box(axis, 19.2, main, 1.4, 1.0, f"next y{index}", "white")
    for x, height in ((z, main), (fork, rail), (y_out, main)):
        _plus(axis, x, height)
    _arrow(axis, (y_in + 0.75, main), (norm_1 - 0.75, main))
    _arrow(axis, (norm_1 + 0.75, main), (attention - 0.95, main))
    _arrow(axis, (attention + 0.95, main), (z - 0.3, main))
    _arrow(axis, (z + 0.3, main), (norm_2 - 0.75, main))
    _arrow(axis, (norm_2 + 0.75, main), (feed - 0.95, main))
    _arrow(axis, (feed + 0.95, main), (y_out - 0.3, main))
    _arrow(axis, (y_out + 0.3, main), (18.5, main))
    # The residual: y goes around attention, meets a, goes around the feed-forward network.
    _line(axis, [(y_in, main + up * 0.5), (y_in, rail)])
    _arrow(axis, (y_in, rail), (fork - 0.3, rail), RESIDUAL)
    _arrow(axis, (fork, main), (fork, rail - up * 0.3), RESIDUAL)
    _line(axis, [(fork + 0.3, rail), (y_out, rail)])
    _arrow(axis, (y_out, rail), (y_out, main + up * 0.3), RESIDUAL)
    # The sum: begun with y, awaited at z.
    _arrow(axis, (y_in, main - up * 0.5), (y_in, up * 0.55), COLOURS["exposed"])
    _arrow(axis, (z, up * 0.55), (z, main - up * 0.3), COLOURS["exposed"])
    for x, height, text in (
        (7.3, main, f"a{index}"),
        (z + 0.75, main, f"z{index}"),
        (12.5, rail, f"y{index} + a{index}"),
    ):
        axis.text(x, height + 0.28, text, ha="center", va="bottom", fontsize=9, color=INK)
    axis.text(z + 0.15, up * 1.0, "wait", ha="left", va="center", fontsize=8, color=INK)
    axis.text(y_in + 0.15, up * 1.0, "begin", ha="left", va="center", fontsize=8, color=INK)


def _sub(device: int) -> str:
    return "₀₁"[device]


def _box(
    axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.12",
            facecolor=colour,
            edgecolor=INK,
            linewidth=0.8,
            zorder=3,
        )
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=10, color=INK, zorder=4)


def _plus(axis: Axes, x: float, y: float) -> None:
    axis.plot([x], [y], marker="o", markersize=14, color="white", markeredgecolor=INK, zorder=3)
    axis.text(x, y, "+", ha="center", va="center", fontsize=12, color=INK, zorder=4)


def _arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK
) -> None:
    axis.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1.2,
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )


def _line(axis: Axes, points: list[tuple[float, float]]) -> None:
    axis.plot(*zip(*points, strict=True), color=RESIDUAL, linewidth=1.2, solid_capstyle="round")


FIGURES: dict[str, Callable[[], Figure]] = {
    "timelines": lambda: draw_timelines(FAST_ALLREDUCE),
    "timelines-slow-link": lambda: draw_timelines(SLOW_ALLREDUCE),
    "kraken-layer": draw_layer,
}


def main() -> None:
    """Write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check-png", type=Path, metavar="DIR", help="write PNG copies as well")
    png_folder: Path | None = parser.parse_args().check_png
    # The same bytes every time, text as outlines, and a ground that dark pages do not swallow.
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "krakenlm",
            "svg.fonttype": "path",
            "font.family": "DejaVu Sans",
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
        }
    )
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw()
        target = IMAGES / f"{name}.svg"
        figure.savefig(target, metadata={"Date": None})
        # matplotlib ends some lines with a blank.
        lines = target.read_text(encoding="utf-8").splitlines()
        target.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
        if png_folder is not None:
            figure.savefig(png_folder / f"{name}.png", dpi=110)
        plt.close(figure)
        print(f"wrote docs/img/{target.name}")


if __name__ == "__main__":
    main()
