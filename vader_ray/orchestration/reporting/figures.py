"""Figures of the reports: numbers to matplotlib figures, written as SVG and PNG and embedded in HTML pages.

Series have Okabe and Ito's colours, which colour-blind readers can distinguish, and different markers and
dashes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P", "X"), ("-", "--", "-.", ":")
INK, LINE = "#222222", "#d4d4d4"
WIDTH, HEIGHT = 4.4, 3.0
"""Size in inches, at which text of 10 points is readable on the width of a phone."""
LEGEND_ROW = 0.24
"""Height of a row of the legend in inches, added to the figure."""
LEGEND_LETTERS = 34
"""Characters per row of the legend: labels up to half as long are set in two columns."""
DOTS_PER_INCH = 160
MAX_MARKERS = 40
"""Points of a line that all have a marker."""
MAX_TICKS = 12
"""Values of a setting with a tick of their own; with more numbers, matplotlib chooses the ticks and no line
connects the means."""
MAX_LABELLED = 24
"""Points of a figure of trade-offs that all have a label."""

CELL_WIDTH, CELL_HEIGHT, MARGIN = 0.64, 0.46, 1.1
"""Size of a cell of a heat map, and the space for the rows' labels, in inches."""
RISE, FALL = (0.45, 0.68, 0.90), (0.95, 0.55, 0.45)
"""Red, green and blue of the largest gain and of the largest fall, on which `ON_TINT` is readable."""
ON_TINT = "#101010"
"""Colour of text on a tinted cell, in the dark style of a page as well."""

YRange: TypeAlias = tuple[float | None, float | None]
AUTOMATIC: YRange = (None, None)
PERCENT: YRange = (0, 100)
FROM_ZERO: YRange = (0, None)

STYLE = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "text.color": INK, "grid.color": LINE,
    "axes.grid": True, "axes.axisbelow": True,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False,
    "svg.fonttype": "none", "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One line of a figure of curves."""

    label: str
    """Text in the legend."""
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    """Lower edge of the band at each point; empty for a line without band."""
    high: Sequence[float] = ()
    """Upper edge of the band at each point; empty for a line without band."""
    marked: Sequence[int] = ()
    """Indices of the points with a cross, where the guard fired."""
    raw: Sequence[float] = ()
    """Value at each point before it was smoothed, drawn thin; empty for a line that is not smoothed."""


@dataclass(frozen=True)
class Point:
    """One point of a figure of trade-offs."""

    label: str
    """Text in the legend."""
    x: float
    y: float
    on_front: bool
    """Whether the point is on the Pareto front, and therefore filled."""


@dataclass(frozen=True)
class Cell:
    """One number of a heat map."""

    value: float
    error: float | None = None
    """Standard error, written below the value."""
    is_marked: bool = False
    """Whether the cell has a frame."""

    @property
    def text(self) -> str:
        """The value with its sign, and its error."""
        value = f"{self.value:+.2f}".replace("-", "−")
        return value if self.error is None else f"{value}\n± {self.error:.2f}"


def curves(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, y_range: YRange = AUTOMATIC
) -> Figure:
    """Draw lines with their bands, and a legend if there are several.

    Args:
        y_range: ends of the y axis; None for an end that follows from the values.
    """
    figure, axes = _figure(title, x_label, y_label, [one.label for one in series])
    for index, one in enumerate(series):
        style = _style(index) | ({"marker": None} if len(one.x) > MAX_MARKERS else {})
        axes.plot(one.x, one.y, label=one.label, linewidth=1.8, markersize=4.5, clip_on=False, **style)
        if one.raw:
            axes.plot(one.x, one.raw, linewidth=0.8, color=style["color"], alpha=0.45)
        if one.low:
            axes.fill_between(one.x, one.low, one.high, color=style["color"], alpha=0.16, linewidth=0)
        crosses = [(one.x[point], one.y[point]) for point in one.marked]
        if crosses:
            axes.scatter(
                *zip(*crosses, strict=True), marker="x", s=95, linewidths=2.2, color=style["color"], zorder=5
            )
    axes.set_ylim(*y_range)
    _legend(figure, axes)
    return figure


def chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, y_range: YRange = AUTOMATIC
) -> dict[str, Any]:
    """Return the figure of `curves` as data for the page's script, which draws it with uPlot."""
    lines = [
        {name: list(value) if name != "label" else value for name, value in vars(one).items()}
        for one in series
    ]
    return {"title": title, "x": x_label, "y": y_label, "yRange": y_range, "lines": lines}


def trade_off(points: Sequence[Point], *, title: str, x_label: str, y_label: str) -> Figure:
    """Draw points in the plane of two rewards; those on the Pareto front are filled.

    With more than `MAX_LABELLED` points, those that are not on the front are small and have no label.
    """
    labelled = [point for point in points if point.on_front or len(points) <= MAX_LABELLED]
    unlabelled = [point for point in points if point not in labelled]
    figure, axes = _figure(title, x_label, y_label, [point.label for point in labelled])
    axes.plot([point.x for point in unlabelled], [point.y for point in unlabelled], "o", color=INK, alpha=0.3,
              markersize=3)  # fmt: skip
    for index, point in enumerate(labelled):
        look = _style(index)
        face = look["color"] if point.on_front else "none"
        axes.plot(
            point.x,
            point.y,
            look["marker"],
            color=look["color"],
            markerfacecolor=face,
            markersize=8,
            label=point.label,
        )
    axes.locator_params(axis="x", nbins=5)  # labels of rewards have many digits
    _legend(figure, axes)
    return figure


def heat_map(
    cells: Sequence[Sequence[Cell | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    unit: str,
    notes: tuple[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw a matrix of gains: pale blue above 0, pale red below it, framed where a cell is marked.

    Args:
        cells: rows of cells; None for what was not measured.
        unit: label of the axis of the columns.
        notes: heading and texts of a last column without colours.
    """
    heading, texts = notes or ("", ())
    size = (MARGIN + CELL_WIDTH * (len(columns) + bool(notes)), 1.5 + CELL_HEIGHT * len(rows))
    largest = max((abs(cell.value) for row in cells for cell in row if cell), default=0.0) or 1.0
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot(xlabel=unit)
        figure.suptitle(title, fontsize=11, fontweight="bold", x=0.02, ha="left")
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            if cell is None:
                axes.text(x, y, "–", ha="center", va="center", color=INK)
                continue
            part, tint = abs(cell.value) / largest, RISE if cell.value > 0 else FALL
            face = tuple(1 - part * (1 - level) for level in tint)
            edge = {"edgecolor": INK, "linewidth": 2.2, "zorder": 3} if cell.is_marked else {"zorder": 2}
            axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=face, **edge))
            axes.text(x, y, cell.text, ha="center", va="center", color=ON_TINT, zorder=4, fontsize=9)
        if notes:
            axes.text(len(columns), y, texts[y], ha="center", va="center", color=INK)
    labels = [*columns, *([heading] if notes else [])]
    wrapped = [label.replace("_", "\n").replace(" ", "\n") for label in labels]
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(labels)), wrapped, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def effect(points: Sequence[tuple[object, float]], *, title: str, x_label: str, y_label: str) -> Figure:
    """Draw a metric against the values of a setting: a dot per run; few values have a line of means."""
    values = sorted({value for value, _ in points}, key=_sort_key)
    numbers = [_as_number(value) for value in values]
    numeric = [number for number in numbers if number is not None]
    figure, axes = _figure(title, x_label, y_label, [])
    positions = dict(zip(values, numeric if len(numeric) == len(values) else range(len(values)), strict=True))
    axes.plot(
        [positions[value] for value, _ in points],
        [y for _, y in points],
        "o",
        color=COLOURS[0],
        alpha=0.55,
        markersize=6,
    )
    if len(values) <= MAX_TICKS:
        means = [_mean([y for other, y in points if other == value]) for value in values]
        axes.plot([positions[value] for value in values], means, "-", color=COLOURS[1], linewidth=1.6)
    if len(numeric) == len(values) and min(numeric) > 0 and max(numeric) / min(numeric) >= 10:
        axes.set_xscale("log")
    if len(values) <= MAX_TICKS or len(numeric) < len(values):
        ticks = list(positions.items())[:: -(-len(values) // MAX_TICKS)]
        axes.set_xticks([position for _, position in ticks], [str(value) for value, _ in ticks])
        axes.minorticks_off()
    return figure


def write(figure: Figure, path: Path) -> str:
    """Write ``PATH.svg`` and ``PATH.png``; return the SVG for a page, with the page's colours.

    The page defines the CSS variables ``--ink``, ``--line`` and ``--series-0`` to ``--series-5``. Equal
    figures give equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": path.name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        figure.set_layout_engine("none")  # the layout is computed already, and computing it is slow
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=DOTS_PER_INCH)
    start, end, rest = text.getvalue().partition('version="1.1">')
    path.with_name(f"{path.name}.svg").write_text(
        f'{start}{end}\n<rect width="100%" height="100%" fill="#ffffff"/>{rest}', encoding="utf-8"
    )
    return _inline(text.getvalue(), path.name)


def _inline(svg: str, name: str) -> str:
    """Return the SVG element without size, in the page's colours, with ids that are unique in the page."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r' (width|height)="[\d.]+pt"', "", element, count=2)
    for index, colour in enumerate(COLOURS):
        element = element.replace(colour.lower(), f"var(--series-{index})")
    element = element.replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    names = set(re.findall(r'id="([^"]+)"', element))
    return re.sub(
        r'(id="|href="#|url\(#)([^")]+)',
        lambda found: f"{found[1]}{name}-{found[2]}" if found[2] in names else found[0],
        element,
    )


def _figure(title: str, x_label: str, y_label: str, labels: Sequence[str]) -> tuple[Figure, Any]:
    extra = LEGEND_ROW * _legend_rows(labels)
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT + extra), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _legend_rows(labels: Sequence[str]) -> int:
    return -(-len(labels) // _columns(labels)) if len(labels) > 1 else 0


def _columns(labels: Sequence[str]) -> int:
    return 1 if max((len(label) for label in labels), default=0) > LEGEND_LETTERS // 2 else 2


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        with rc_context(STYLE):
            figure.legend(handles, labels, loc="outside lower center", ncols=_columns(labels), fontsize=9)


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _as_number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _sort_key(value: object) -> tuple[bool, float, str]:
    number = _as_number(value)
    return number is None, number or 0.0, str(value)
