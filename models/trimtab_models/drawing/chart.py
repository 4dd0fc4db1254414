"""Charts with labels at the ends of lines instead of a legend."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from trimtab_models.drawing.labels import Box, End, Points, place
from trimtab_models.drawing.palette import FAMILIES, INK, colour, family

WIDTH = 8.3
"""Inches; a README shows 830 pixels."""
DPI = 180
MARKERS = "osD^vP"
POINTS_PER_INCH = 72
LABEL_SIZE = 8.0
LINE = 1.25
"""Height of a line of words, over their size."""
GAP = 6.0
"""Points of type between the frame and its gutter."""
LAYOUTS = 4
NARROW = 8.0
"""A logarithmic axis over a smaller ratio has ticks at equal steps."""
MANY = 6
"""Labels from which a chart of several families says what their hues mean."""
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@dataclass
class Label:
    """Words at a point of the data."""

    text: str
    at: tuple[float, float]
    colour: str


@dataclass
class Panel:
    """One pair of axes, with the labels that are still to be placed."""

    axes: Any
    labels: list[Label] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    gutter: float = 0.0

    def line(
        self,
        name: str,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        errors: npt.ArrayLike | None = None,
        *,
        shade: str | None = None,
        label: str | None = "",
        **style: Any,
    ) -> None:
        """Draw a line through points, a band of ± `errors` (one point: a bar), and its label.

        Args:
            name: the method; its colour is the palette's, unless `shade` says another.
            x: places.
            y: values.
            errors: one standard error of each value.
            shade: the colour of what is no method.
            label: words at its end; "" is the name, None is no label.
            style: further properties of the line.
        """
        ink = self._ink(name, shade)
        xs, ys = (np.asarray(values, dtype=float) for values in (x, y))
        fields = {"marker": MARKERS[len(self.labels) % len(MARKERS)], **style}
        self.axes.plot(xs, ys, label=name, **{"color": ink, "zorder": 3, **fields})
        if errors is not None:
            e = np.asarray(errors, dtype=float)
            if len(xs) > 1:
                self.axes.fill_between(xs, ys - e, ys + e, color=ink, alpha=0.13, linewidth=0)
            else:
                self.axes.plot([xs, xs], [ys - e, ys + e], color=ink, linewidth=1)
        if label is not None and len(xs):
            self.labels.append(Label(label or name, (xs[-1], ys[-1]), ink))

    def point(
        self, name: str, x: float, y: float, error: float | None = None, *, shade: str | None = None
    ) -> None:
        """Draw one labelled point, with a bar of ± `error`."""
        ink = self._ink(name, shade)
        marker = MARKERS[len(self.labels) % len(MARKERS)]
        if error is not None:
            self.axes.plot([x, x], [y - error, y + error], color=ink, linewidth=1)
        self.axes.plot([x], [y], marker, color=ink, label=name, markersize=5, zorder=3)
        self.labels.append(Label(name, (x, y), ink))

    def level(self, text: str, y: float) -> None:
        """Draw a horizontal line of reference, labelled at its right end."""
        self.axes.axhline(y, color=INK, linestyle=":", linewidth=1, zorder=1)
        self.labels.append(Label(text, (np.inf, y), INK))

    def title(self, text: str) -> None:
        """Write a title over the left edge."""
        self.axes.set_title(text, loc="left", size=RC["axes.titlesize"], color=INK)

    def scale(self, mappable: Any, text: str) -> None:
        """Draw the bar that says what the colours of `mappable` mean."""
        bar = self.axes.figure.colorbar(mappable, ax=self.axes)
        bar.set_label(text, color=INK, size=RC["font.size"])
        bar.ax.tick_params(color=INK, labelcolor=INK, labelsize=RC["font.size"])
        bar.outline.set_visible(False)

    def fit(self) -> None:
        """Set the vertical limits to what is seen between the horizontal ones."""
        low, high = self.axes.get_xlim()
        seen = []
        for line in self.axes.lines:
            if line.get_transform() == self.axes.transData:
                x, y = np.asarray(line.get_xydata(), dtype=float).T
                order = np.argsort(x, kind="stable")
                within = [edge for edge in (low, high) if x[order[0]] <= edge <= x[order[-1]]]
                seen += [*y[(x >= low) & (x <= high)], *np.interp(within, x[order], y[order])]
        margin = 0.06 * (max(seen) - min(seen) or 1.0)
        self.axes.set_ylim(min(seen) - margin, max(seen) + margin)

    def _ink(self, name: str, shade: str | None) -> str:
        if shade is not None:
            return shade
        self.methods.append(name)
        return colour(name)


class Chart:
    """A figure of panels, side by side or stacked; `save` places the labels and writes it."""

    def __init__(
        self,
        panels: int = 1,
        height: float = 4.6,
        width: float = WIDTH,
        *,
        stacked: bool = False,
        **options: Any,
    ):
        shape = (panels, 1) if stacked else (1, panels)
        with rc_context(RC):
            self.figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
            self.canvas = FigureCanvasAgg(self.figure)
            self.figure.patch.set_alpha(0)
            axes = self.figure.subplots(*shape, squeeze=False, **options).ravel()
        self.panels = [Panel(one) for one in axes]
        for one in axes:
            one.patch.set_alpha(0)

    def save(self, path: Path) -> None:
        """Write a PNG file without a date."""
        with rc_context(RC):
            self.place()
            kept = io.BytesIO()
            self.figure.savefig(kept, format="png", metadata={"Software": None})
        # 256 colours are enough for a chart, and make the file three times as small.
        image = Image.open(kept).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        image.save(path, optimize=True)

    def place(self) -> list[list[Box]]:
        """Place the labels of every panel; returns their boxes in pixels, in order."""
        self._key()
        for panel in self.panels:
            _plain_ticks(panel.axes)
        sizes = [self._sizes(panel) for panel in self.panels]
        for _ in range(LAYOUTS):  # a gutter narrows the frame, which may move labels into it
            self.figure.draw_without_rendering()
            boxes = [self._boxes(*each) for each in zip(self.panels, sizes, strict=True)]
            narrow = [_reserve(*each) for each in zip(self.panels, boxes, strict=True)]
            if not any(narrow):
                break
        self.figure.set_layout_engine("none")
        for panel, some in zip(self.panels, boxes, strict=True):
            self._write(panel, some)
        return boxes

    @property
    def _unit(self) -> float:
        """Pixels per point of type."""
        return self.figure.dpi / POINTS_PER_INCH

    def _boxes(self, panel: Panel, sizes: Sequence[tuple[float, float]]) -> list[Box]:
        """Where the labels of one panel stand, in the present layout."""
        frame = _frame(panel.axes)
        ends = [
            End(*_end(panel.axes, label.at, frame), *size)
            for label, size in zip(panel.labels, sizes, strict=True)
        ]
        beside = frame.x + frame.width + GAP * self._unit
        return place(ends, _points(panel.axes, self._unit), frame, beside, self._unit)

    def _sizes(self, panel: Panel) -> list[tuple[float, float]]:
        """Width and height of each label in pixels."""
        renderer = self.canvas.get_renderer()
        height = LINE * LABEL_SIZE * self.figure.dpi / POINTS_PER_INCH
        sizes = []
        for label in panel.labels:
            words = self.figure.text(0, 0, label.text, size=LABEL_SIZE)
            extent = words.get_window_extent(renderer)
            sizes.append((extent.width, height))
            words.remove()
        return sizes

    def _write(self, panel: Panel, boxes: Sequence[Box]) -> None:
        """Write the labels of one panel, with thin lines to those that stand apart."""
        frame = _frame(panel.axes)
        across, up = self.figure.bbox.width, self.figure.bbox.height
        for label, box in zip(panel.labels, boxes, strict=True):
            middle = box.y + box.height / 2
            self.figure.text(
                box.x / across,
                middle / up,
                label.text,
                color=label.colour,
                size=LABEL_SIZE,
                va="center_baseline",
            )
            x, y = _end(panel.axes, label.at, frame)
            near = min(max(x, box.x - self._unit), box.x + box.width + self._unit)
            edge = min(max(y, box.y), box.y + box.height) if box.x <= x else middle
            if np.hypot(near - x, edge - y) > 9 * self._unit or box.x > frame.x + frame.width:
                places = [x / across, near / across], [y / up, edge / up]
                self.figure.add_artist(
                    Line2D(*places, color=label.colour, linewidth=0.6, alpha=0.7)
                )

    def _key(self) -> None:
        """Say what the hues mean, in one row above the panels."""
        names = [name for panel in self.panels for name in panel.methods]
        present = {family(name) for name in names}
        if len(present) < 2 or len(names) < MANY:
            return
        axes, x = self.panels[0].axes, 0.0
        renderer = self.canvas.get_renderer()
        for kind, shades in FAMILIES.items():
            if kind in present:
                words = axes.annotate(
                    kind,
                    (0, 1),
                    (x, 21 if axes.get_title("left") else 6),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    color=next(iter(shades.values())),
                    weight="bold",
                    size=LABEL_SIZE,
                )
                wide = words.get_window_extent(renderer).width
                x += wide * POINTS_PER_INCH / self.figure.dpi + 12


def _frame(axes: Any) -> Box:
    """The axes in pixels."""
    area = axes.get_window_extent()
    return Box(area.x0, area.y0, area.width, area.height)


def _reserve(panel: Panel, boxes: Sequence[Box]) -> bool:
    """Keep a gutter free that holds the labels beside the frame; whether it was too narrow."""
    frame = _frame(panel.axes)
    beside = [
        (box.width, label.text)
        for box, label in zip(boxes, panel.labels, strict=True)
        if box.x > frame.x + frame.width
    ]
    width, text = max(beside, default=(0.0, ""))
    if width <= panel.gutter:
        return False
    panel.gutter = width
    # The layout counts words, seen or not.
    panel.axes.annotate(
        text,
        (1, 0.5),
        (GAP, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        size=LABEL_SIZE,
        alpha=0,
    )
    return True


def _plain_ticks(axes: Any) -> None:
    """Numbers such as 1, 2, 5, 10 on a logarithmic axis, not powers."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log" and isinstance(axis.get_major_locator(), LogLocator):
            low, high = axis.get_view_interval()
            narrow = high / low < NARROW
            axis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


def _points(axes: Any, unit: float) -> Points:
    """Points on all lines of the axes, at most 2 points of type apart, [n, 2] in pixels."""
    pieces = []
    for line in axes.lines:
        path = line.get_transform().transform(line.get_xydata())
        path = path[np.isfinite(path).all(1)]
        for start, end in pairwise(path):
            steps = min(2 + int(np.hypot(*(end - start)) / (2 * unit)), 2000)
            pieces.append(np.linspace(start, end, steps))
        pieces.append(path)
    return np.concatenate(pieces) if pieces else np.empty((0, 2))


def _end(axes: Any, at: tuple[float, float], frame: Box) -> tuple[float, float]:
    """A label's end in pixels; where it lies beyond the frame, the point where its line leaves."""
    edge = frame.x + frame.width
    x, y = axes.transData.transform((min(at[0], axes.get_xlim()[1]), at[1]))
    for line in axes.lines:
        data = np.asarray(line.get_xydata(), dtype=float)
        if at[0] > axes.get_xlim()[1] and len(data) > 1 and tuple(data[-1]) == tuple(at):
            path = axes.transData.transform(data)  # lines are straight in pixels
            beyond = int(np.argmax(path[:, 0] > edge))
            (x0, y0), (x1, y1) = path[max(beyond - 1, 0)], path[beyond]
            y = y0 + (y1 - y0) * (edge - x0) / (x1 - x0) if x1 > x0 else y1
    low, high = frame.y, frame.y + frame.height
    return float(np.clip(x, frame.x, edge)), float(np.clip(y, low, high))
