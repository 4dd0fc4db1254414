"""The words of the reviews world: the things to review, and the polarity of opinion words."""

ASPECTS: dict[str, tuple[str, str, str]] = {
    "cafe": ("coffee", "seating", "music"),
    "hotel": ("room", "breakfast", "lobby"),
    "museum": ("exhibition", "tour", "building"),
    "restaurant": ("menu", "food", "dessert"),
    "bakery": ("bread", "cake", "counter"),
    "library": ("catalog", "reading room", "garden"),
    "gym": ("equipment", "locker room", "timetable"),
    "park": ("path", "playground", "lake"),
    "theater": ("stage", "sound", "seating"),
    "bookshop": ("selection", "layout", "lighting"),
    "phone": ("screen", "battery", "speaker"),
    "laptop": ("keyboard", "screen", "battery"),
    "camera": ("lens", "grip", "viewfinder"),
    "kettle": ("handle", "lid", "spout"),
    "blender": ("motor", "jar", "lid"),
    "backpack": ("zipper", "strap", "fabric"),
    "jacket": ("lining", "hood", "zipper"),
    "chair": ("cushion", "frame", "fabric"),
    "lamp": ("switch", "shade", "lighting"),
    "headset": ("microphone", "sound", "cable"),
}
"""Kind of thing → the parts that a review may mention."""

PLACES = tuple(ASPECTS)[:10]
"""The kinds that people visit; they buy all others."""

GOOD = ("excellent", "wonderful", "superb", "good", "decent")
BAD = ("terrible", "awful", "dreadful", "poor", "weak")
PLAIN = ("ordinary", "average")

POLARITY: dict[str, float] = {
    **dict.fromkeys(("excellent", "wonderful", "superb"), 1.0),
    **dict.fromkeys(("good", "decent"), 0.5),
    **dict.fromkeys(PLAIN, 0.0),
    **dict.fromkeys(("poor", "weak"), -0.5),
    **dict.fromkeys(("terrible", "awful", "dreadful"), -1.0),
    "delighted": 1.0, "impressed": 1.0, "disappointed": -1.0, "annoyed": -1.0,
    "ease": 1.0, "trouble": -1.0, "kindness": 1.0, "rudeness": -1.0,
    "fair": 1.0, "excessive": -1.0, "recommend": 1.0, "avoid": -1.0,
    "love": 1.0, "regret": -1.0,
}  # fmt: skip
"""Opinion word → its polarity, −1 to 1."""

FORMAL_ADVERBS = ("remarkably", "particularly", "consistently")
CASUAL_ADVERBS = ("super", "totally", "kinda")

FORMAL = frozenset(
    (*FORMAL_ADVERBS, "recently", "furthermore", "moreover", "considerable", "situated", "via",
     "although", "reservation", "conclusion", "therefore", "considering")
)  # fmt: skip
"""Words of the formal register only."""

CASUAL = frozenset(
    (*CASUAL_ADVERBS, "just", "honestly", "gotta", "wow", "tons", "folks", "guys", "yeah", "anyway",
     "lol", "yep", "sure", "okay")
)  # fmt: skip
"""Words of the casual register only."""
