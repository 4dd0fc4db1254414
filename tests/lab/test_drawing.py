"""Charts: no two labels collide, a method has one colour in every plot, and files hold no date."""

import itertools

import numpy as np
import pytest
from PIL import Image

from trimtab_lab.arena.methods import METHODS
from trimtab_models.drawing import SHADES, Chart, colour, family
from trimtab_models.drawing.labels import Box, End, place, spread
from trimtab_models.drawing.palette import FAMILIES, INK, SAME
from trimtab_models.objectives import OBJECTIVES

NAMES = [name for shades in FAMILIES.values() for name in shades]
PAGES = {"white": "#ffffff", "dark": "#0d1117"}


def collisions(boxes):
    return sum(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def crowded(seed, labels=24):
    """Ends in a small frame, most of them near each other, half of them at its right edge."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(labels) < 0.5, 400.0, rng.uniform(150, 250, labels))
    y = rng.normal(150, 30, labels).clip(0, 300)
    return [
        End(a, b, width, 11.0)
        for a, b, width in zip(x, y, rng.uniform(20, 90, labels), strict=True)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_no_labels_overlap_in_a_crowd(seed):
    ends, frame = crowded(seed), Box(0, 0, 400, 300)
    points = np.random.default_rng(seed).uniform(0, 300, (500, 2))
    boxes = place(ends, points, frame, 406, 1.0)
    assert [(box.width, box.height) for box in boxes] == [(end.width, end.height) for end in ends]
    assert collisions(boxes) == 0
    assert all(box.inside(Box(0, 0, 500, 300)) for box in boxes)
    # The control: labels just beside their ends do collide.
    assert collisions([Box(end.x + 5, end.y - 5, end.width, end.height) for end in ends]) > 10


def test_spread_intervals_keep_their_order_and_move_little():
    assert spread([5, 50], [10, 10], 0, 100) == [5, 50], "nothing collides: nothing moves"
    assert spread([50, 50], [10, 10], 0, 100) == [45, 55]
    assert spread([99, 98], [10, 10], 0, 100) == [95, 85]
    rng = np.random.default_rng(0)
    for _ in range(50):
        middles, heights = rng.uniform(0, 100, 8), rng.uniform(2, 12, 8)
        placed = np.array(spread([*middles], [*heights], 0, 100))
        order = np.argsort(middles)
        gaps = np.diff(placed[order]) - (heights[order][1:] + heights[order][:-1]) / 2
        assert gaps.min() > -1e-9
        assert (placed - heights / 2).min() > -1e-9
        assert (placed + heights / 2).max() < 100 + 1e-9


@pytest.mark.parametrize("panels", [1, 2])
def test_a_chart_with_every_method_keeps_its_labels_apart_and_in_the_picture(panels):
    chart = Chart(panels)
    rng = np.random.default_rng(3)
    for panel in chart.panels:
        for name in NAMES[::3]:
            steps = rng.uniform(0, 1, (6, 2)).cumsum(0)
            panel.line(name, steps[:, 0], steps[:, 1] / 3, np.full(6, 0.05))
        panel.level("base", 0.1)
        panel.axes.set(xlim=(0, 3), xlabel="KL")
        panel.fit()
    width, height = chart.figure.bbox.size
    for boxes in chart.place():
        assert len(boxes) == len(NAMES[::3]) + 1
        assert collisions(boxes) == 0
        assert all(box.inside(Box(0, 0, width, height)) for box in boxes), "a label is clipped"


def test_every_method_and_objective_has_a_colour_of_its_own():
    assert len(NAMES) == len(set(NAMES)), "a name is in two families"
    assert all(colour(name) for name in (*METHODS, *OBJECTIVES, *SAME))
    assert family("pargs") == family("bradley-terry") == "rewards"
    assert family("distribution") == "ours"
    with pytest.raises(KeyError):
        colour("no such method")
    shown = [name for name in METHODS if name not in SAME]
    same = [pair for pair in itertools.combinations(shown, 2) if len({*map(colour, pair)}) == 1]
    assert not same


def test_a_method_has_the_same_colour_in_every_chart():
    for names in (NAMES[:5], NAMES[4::-1]):
        panel = Chart().panels[0]
        for name in names:
            panel.line(name, [0, 1], [0, 1])
        assert [line.get_color() for line in panel.axes.lines] == [*map(colour, names)]


def luminance(shade):
    parts = np.array([int(shade[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_colours_read_on_light_and_dark_pages(page):
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#ffff00", PAGES["white"]) < 3, "the control"
    assert min(contrast(shade, page) for shade in (*map(colour, NAMES), *SHADES)) >= 3
    assert contrast(INK, page) >= 4


def test_files_are_transparent_and_hold_no_date(tmp_path):
    for name in ("a.png", "b.png"):
        chart = Chart(height=2)
        chart.panels[0].line("vas", [0, 1, 2], [0, 1, 1.5], [0.1, 0.1, 0.2])
        chart.save(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = Image.open(tmp_path / "a.png")
    assert not {"Software", "Creation Time"} & {*image.info}
    assert image.width == 2 * 747
    assert image.convert("RGBA").getpixel((2, 2))[3] == 0
