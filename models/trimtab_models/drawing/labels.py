"""Places for labels beside the ends of lines, so that no two of them collide. All in pixels.

A label whose line leaves the frame on the right stands in the gutter beside it. Every other label
tries places around its end, nearest first, and takes the one that covers the fewest points of
lines; if all of them collide with labels or leave the frame, it goes to the gutter as well. Labels
in the gutter keep the order of their ends and move as little as possible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

RINGS = (5.0, 9.0, 15.0, 23.0, 33.0, 45.0, 60.0)
"""Distances from an end to a label, in points of type."""
ANGLES = (0, 45, -45, 90, -90, 20, -20, 135, -135, 180)
"""Directions in degrees, the preferred ones first."""
CROSSED = 12.0
"""What a covered point of a line costs, in points of distance."""
AIR = 1.5
"""Points of type around a label that lines should leave free too."""


@dataclass(frozen=True)
class Box:
    """A rectangle: its left, bottom, width and height."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two share any area."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def inside(self, frame: "Box") -> bool:
        """Whether it lies within a frame."""
        return (
            frame.x <= self.x
            and frame.y <= self.y
            and self.x + self.width <= frame.x + frame.width
            and self.y + self.height <= frame.y + frame.height
        )

    def grown(self, by: float) -> "Box":
        """The same with a margin on all sides."""
        return Box(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)

    def covers(self, points: Points) -> int:
        """How many of the points, [n, 2], lie in it."""
        x, y = points.T
        within = (x > self.x) & (x < self.x + self.width)
        return int((within & (y > self.y) & (y < self.y + self.height)).sum())


@dataclass(frozen=True)
class End:
    """The end of a line and the size of its label."""

    x: float
    y: float
    width: float
    height: float


def place(ends: Sequence[End], points: Points, frame: Box, gutter: float, unit: float) -> list[Box]:
    """The boxes of labels, in the order of their ends; no two overlap.

    Args:
        ends: where lines end, and how large the labels are.
        points: [n, 2], of all lines and markers, that labels should leave free.
        frame: the axes.
        gutter: the left edge of the labels beside the frame.
        unit: pixels per point of type.
    """
    boxes: dict[int, Box] = {}
    leaving = [i for i, end in enumerate(ends) if end.x >= frame.x + frame.width - unit]
    staying = [i for i in range(len(ends)) if i not in leaving]
    for i in sorted(staying, key=lambda i: (-ends[i].x, ends[i].y)):
        box = _beside(ends[i], points, frame, [*boxes.values()], unit)
        if box is None:
            leaving.append(i)
        else:
            boxes[i] = box
    heights = [ends[i].height + 0.01 * unit for i in leaving]  # rounding must not let them touch
    middles = spread([ends[i].y for i in leaving], heights, frame.y, frame.y + frame.height)
    for i, middle in zip(leaving, middles, strict=True):
        end = ends[i]
        boxes[i] = Box(gutter, middle - end.height / 2, end.width, end.height)
    return [boxes[i] for i in range(len(ends))]


def _beside(end: End, points: Points, frame: Box, others: Sequence[Box], unit: float) -> Box | None:
    """The best free place around an end; None if there is none in the frame."""
    best, lowest = None, math.inf
    for ring in RINGS:
        for order, angle in enumerate(ANGLES):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = end.x + dx * ring * unit, end.y + dy * ring * unit
            # The box touches the ring with the side or corner that faces the end.
            box = Box(
                x - (1 - dx) / 2 * end.width, y - (1 - dy) / 2 * end.height, end.width, end.height
            )
            if not box.inside(frame) or any(box.overlaps(other) for other in others):
                continue
            cost = ring + 0.3 * order + CROSSED * box.grown(AIR * unit).covers(points)
            if cost < lowest:
                best, lowest = box, cost
    return best


def spread(
    middles: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """New middles of intervals on a line that do not overlap, nearest to the old ones.

    Intervals that collide become one block, whose place is the mean of what its members want
    (pool adjacent violators: Barlow et al. 1972). If they are together longer than the line, the
    line is left at its lower end.
    """
    order = np.argsort(np.asarray(middles), kind="stable")
    blocks: list[tuple[float, float, list[int]]] = []  # (start, length, members)
    for i in order:
        members, length = [int(i)], heights[i]
        start = middles[i] - length / 2
        while True:
            start = max(min(start, high - length), low)
            if not blocks or blocks[-1][0] + blocks[-1][1] <= start:
                break
            before, reach, earlier = blocks.pop()
            start = (len(earlier) * before + len(members) * (start - reach)) / (
                len(earlier) + len(members)
            )
            members, length = earlier + members, reach + length
        blocks.append((start, length, members))
    placed = [0.0] * len(middles)
    for start, _, members in blocks:
        at = start
        for i in members:
            placed[i] = at + heights[i] / 2
            at += heights[i]
    return placed
