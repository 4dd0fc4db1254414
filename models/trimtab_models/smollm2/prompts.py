"""Everyday prompts, written for this project: 50 to measure with, and others to train on.

`TEST` is fixed. The training prompts come from sentences with one gap, each with its own list of
words for the gap; no test prompt is among them.
"""

import random

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""The system message that the base's chat template adds to a conversation without one."""

TEST = (
    "How was your day?",
    "My train is late again. What should I do while I wait?",
    "Tell me about the weather in November.",
    "Write a short note to the neighbour who plays loud music at night.",
    "What do you think of our new kitchen table?",
    "I lost my keys this morning.",
    "Describe the last hour before a storm.",
    "My sister did not invite me to her wedding.",
    "Give me your opinion on working from home.",
    "What happened at the meeting yesterday?",
    "Explain why the bread did not rise.",
    "Write two sentences about an old dog.",
    "I am nervous about my first day at the new job.",
    "How do I tell my boss that I made a mistake?",
    "What is it like to live in a small town?",
    "Write a review of a cheap hotel near the station.",
    "The doctor said that I must eat less salt.",
    "Tell a short story about a boy who broke a window.",
    "Should I buy a used car or a new one?",
    "Reply to a customer whose parcel never came.",
    "What is the worst thing about winter?",
    "My best friend moved to another country.",
    "Describe a walk through a city at night.",
    "How do people feel on a Monday morning?",
    "Write a message to a colleague who is ill.",
    "I burned the dinner and the guests are here.",
    "What do you know about the history of tea?",
    "Write a complaint about a cold pizza.",
    "How can I fall asleep faster?",
    "Our team lost the match in the last minute.",
    "Tell me about a teacher whom nobody liked.",
    "What should I say to someone who lost a pet?",
    "Describe your ideal Sunday.",
    "The bus driver shouted at me today.",
    "Write the first lines of a letter from a soldier to his mother.",
    "Is it bad to eat late in the evening?",
    "My grandfather turned ninety last week.",
    "What makes a good neighbour?",
    "I failed my driving test for the third time.",
    "Write a short speech for the end of a long project.",
    "What is in the fridge of a student?",
    "Why do people argue about money?",
    "Describe a dentist's waiting room.",
    "I want to learn the guitar, but I have no time.",
    "Tell me what you remember about the flood.",
    "How do I clean a very dirty oven?",
    "A stranger paid for my coffee today.",
    "Write a post about the closing of the village school.",
    "What would you do with a free afternoon?",
    "My computer crashed and took my work with it.",
)
"""The prompts to measure with."""

_PLACES = (
    "the market",
    "a hospital",
    "the beach",
    "an airport",
    "a library",
    "the office",
    "a farm",
    "the stadium",
    "a museum",
    "a crowded train",
    "a quiet church",
    "the old harbour",
    "a mountain hut",
    "a school yard",
    "the cinema",
    "a garage",
)
_PEOPLE = (
    "my uncle",
    "a new colleague",
    "our landlord",
    "the baker",
    "an old friend",
    "my daughter",
    "a tired nurse",
    "the coach",
    "my cousin",
    "a lonely sailor",
    "the mayor",
    "our cleaner",
    "a young painter",
    "my roommate",
    "a taxi driver",
    "the librarian",
)
_THINGS = (
    "a broken umbrella",
    "a second-hand bicycle",
    "an old radio",
    "a wool coat",
    "a cheap phone",
    "a heavy suitcase",
    "a new mattress",
    "a noisy fridge",
    "a wooden boat",
    "a garden chair",
    "a kitchen knife",
    "a pair of boots",
    "a birthday cake",
    "a used laptop",
    "a tin of soup",
    "a paper map",
)
_EVENTS = (
    "the power cut",
    "a summer party",
    "the school concert",
    "a job interview",
    "the move to a new flat",
    "a long flight",
    "the football final",
    "a family dinner",
    "the first snow",
    "a visit to the dentist",
    "the election",
    "a camping trip",
    "the fire drill",
    "a wedding in the rain",
    "the last exam",
    "a week without internet",
)
_HABITS = (
    "getting up early",
    "drinking coffee",
    "saving money",
    "cooking for one",
    "reading in bed",
    "cycling to work",
    "sharing a flat",
    "writing a diary",
    "growing tomatoes",
    "running in the cold",
    "eating alone",
    "watching the news",
    "learning to swim",
    "keeping a cat",
    "shopping online",
    "living abroad",
)
_TROUBLES = (
    "the heating does not work",
    "my flight was cancelled",
    "nobody came to my party",
    "I forgot my mother's birthday",
    "the washing machine leaks",
    "my friend does not answer me",
    "I spilled coffee on the report",
    "the shop sent the wrong shoes",
    "my neighbour cut down our tree",
    "I missed the deadline",
    "the soup tastes of nothing",
    "my son hates his school",
    "I cannot find a flat",
    "the car makes a strange noise",
    "my plants keep dying",
    "I said something stupid at work",
)
_GAPS: dict[str, tuple[str, ...]] = {
    "Describe {}.": _PLACES,
    "What can go wrong at {}?": _PLACES,
    "Write three sentences about a morning at {}.": _PLACES,
    "Why do some people avoid {}?": _PLACES,
    "Tell me about {}.": _PEOPLE,
    "Write a short message to {}.": _PEOPLE,
    "What would {} say about this town?": _PEOPLE,
    "Yesterday I had a quarrel with {}.": _PEOPLE,
    "How do I thank {}?": _PEOPLE,
    "Write a short review of {}.": _THINGS,
    "I was given {} for free.": _THINGS,
    "Tell a story in which {} matters.": _THINGS,
    "Is it worth repairing {}?": _THINGS,
    "How did people feel about {}?": _EVENTS,
    "Write a diary entry about {}.": _EVENTS,
    "What is the worst part of {}?": _EVENTS,
    "Give me some advice before {}.": _EVENTS,
    "Explain to a child what happened during {}.": _EVENTS,
    "What do you think of {}?": _HABITS,
    "Is {} good for me?": _HABITS,
    "Write a short article about {}.": _HABITS,
    "Why did I stop {}?": _HABITS,
    "Help me: {}.": _TROUBLES,
    "What should I do if {}?": _TROUBLES,
    "Write a short apology, because {}.": _TROUBLES,
    "I am upset that {}.": _TROUBLES,
    "Make a joke about this: {}.": _TROUBLES,
}
"""Sentence with a gap → what fills it."""

TRAIN = tuple(sentence.format(word) for sentence, words in _GAPS.items() for word in words)
"""The prompts to train on, 432 of them."""


def prompts(split: str, n: int, seed: int) -> list[str]:
    """n prompts of the split "train" or "test" in an order of the seed; all if there are fewer.

    Raises:
        ValueError: the split is another one.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    chosen = list(TRAIN if split == "train" else TEST)
    random.Random(seed).shuffle(chosen)
    return chosen[:n]


def chat(prompt: str) -> str:
    """A user message as the base's chat template renders it, ready for the answer."""
    turns = (("system", SYSTEM), ("user", prompt))
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"
