"""How every plot of the project looks: colours of methods, labels without collisions, files.

One file serves light and dark pages: the background is transparent, and all colours are of middle
lightness. Files hold no date, so the same data gives the same bytes.
"""

from trimtab_models.drawing.chart import Chart, Panel
from trimtab_models.drawing.palette import INK, SHADES, colour, family

__all__ = ["INK", "SHADES", "Chart", "Panel", "colour", "family"]
