"""Worlds of the arena: small tasks with exact rewards, so that every figure can be checked."""

from trimtab_lab.worlds.digest import DIGEST
from trimtab_lab.worlds.real import EVERYDAY, INSTRUCTIONS
from trimtab_lab.worlds.reviews import REVIEWS
from trimtab_lab.worlds.sums import SUMS
from trimtab_lab.worlds.tools import TOOLS, TOOLS_WITH_EXAMPLE
from trimtab_lab.worlds.world import World

__all__ = ["WORLDS", "World"]

WORLDS: dict[str, World] = {
    world.name: world
    for world in (REVIEWS, DIGEST, TOOLS, TOOLS_WITH_EXAMPLE, SUMS, EVERYDAY, INSTRUCTIONS)
}
"""By the name of `trimtab arena NAME`."""
