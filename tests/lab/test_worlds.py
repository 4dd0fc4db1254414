"""The worlds digest, tools and sums: their grammars, their prompts, their exact rewards."""

import random
from collections import Counter

import pytest

from trimtab_lab.worlds import WORLDS, digest, requests, tools
from trimtab_lab.worlds.world import World
from trimtab_models.demo import chat

GRAMMARS = [WORLDS[name] for name in ("digest", "tools", "sums")]

FACTS = chat("summarize mill:closes bank:hires mill:expands port:reopens zoo:moves")
HOME = chat("find a house in the north for 300 with garden with pool and contact")
ADDITION = chat("4 7 0 8 + 2 8 9 1")


def _split(document: str) -> tuple[str, str]:
    prompt, _, answer = document.removesuffix("<|end|>").rpartition("<|assistant|>")
    return f"{prompt}<|assistant|>", answer


@pytest.mark.parametrize(
    ("completion", "attribution", "main_idea", "conciseness"),
    [
        ("mill closes", 1, 1, 1),
        ("bank hires", 1, 0, 1),
        ("mill hires", 0, 1, 1),
        ("zoo moves and mill expands", 1, 1, 2 / 3),
        ("zoo moves and zoo closes and port reopens", 2 / 3, 0, 1 / 3),
        ("mill closes and mill expands and zoo moves and bank hires", 1, 1, 0),
        ("mill closes expands", 0, 1, 5 / 6),
        ("closes mill", 0, 0, 1),
    ],
)
def test_digest_by_hand(
    completion: str, attribution: float, main_idea: float, conciseness: float
) -> None:
    rewards = WORLDS["digest"].rewards
    assert rewards["attribution"](FACTS, completion) == pytest.approx(attribution)
    assert rewards["main_idea"](FACTS, completion) == main_idea
    assert rewards["conciseness"](FACTS, completion) == pytest.approx(conciseness)
    mean = (attribution + main_idea + conciseness) / 3
    assert rewards["gold"](FACTS, completion) == pytest.approx(mean)


RIGHT = (
    "login ; region north ; price 300 ; search house ; filter garden ; filter pool ; open ; contact"
)


@pytest.mark.parametrize(
    ("old", "new", "success"),
    [
        ("", "", True),
        ("filter garden ; filter pool", "filter pool ; filter garden", True),
        ("login ; ", "", False),
        ("login ; region north", "region north ; login", False),
        ("region north ; price 300", "price 300 ; region north", False),
        ("price 300 ; search house", "search house ; price 300", False),
        ("search house ; filter garden", "filter garden ; search house", False),
        ("filter pool ; open", "open ; filter pool", False),
        ("open ; contact", "contact ; open", False),
        ("north", "south", False),
        ("300", "400", False),
        ("house", "flat", False),
        ("garden", "garage", False),
        (" ; filter pool", "", False),
        (" ; price 300", "", False),
        ("open ; ", "", False),
        (" ; contact", "", False),
        ("contact", "contact ; book", False),
        ("login", "login ; login", False),
        ("login ;", "login ; ;", False),
    ],
)
def test_tools_by_hand(old: str, new: str, success: bool) -> None:
    assert WORLDS["tools"].rewards["success"](HOME, RIGHT.replace(old, new)) == success


@pytest.mark.parametrize(
    ("completion", "correct"),
    [
        ("8 + 1 + 0 = 0 9 , 0 + 9 + 0 = 0 9 , 7 + 8 + 0 = 1 5 , 4 + 2 + 1 = 0 7 . 0 7 5 9 9", 1),
        ("8 + 1 + 0 = 0 9 , 0 + 9 + 0 = 0 9 , 7 + 8 + 0 = 0 5 , 4 + 2 + 0 = 0 6 . 0 6 5 9 9", 0),
        ("8 + 1 + 0 = 0 9 . 0 7 5 9 9", 1),
        ("7 5 9 9", 1),
        ("8 + 1 + 0 = 0 9 . 7 5 9 8", 0),
        ("8 + 1 + 0 = 0 9", 0),
        ("", 0),
    ],
)
def test_sums_by_hand(completion: str, correct: float) -> None:
    assert WORLDS["sums"].rewards["correct"](ADDITION, completion) == correct


def test_an_example_is_solved_and_changes_no_reward() -> None:
    world = WORLDS["tools"]
    prompts = world.prompts("test", 20, 0)
    success = world.rewards["success"]
    for plain, extended in zip(prompts, tools.with_example(prompts, 3), strict=True):
        assert extended.endswith(plain)
        assert success(*_split(extended.removesuffix(plain))) == 1
        for answer in (RIGHT, "login"):
            assert success(extended, answer) == success(plain, answer)
    assert Counter(prompt.count("<|user|>") for prompt in world.prompts("train", 40, 0)) == {
        1: 30,
        2: 10,
    }


@pytest.mark.parametrize("world", GRAMMARS, ids=lambda world: world.name)
def test_splits_share_no_request(world: World) -> None:
    train = {requests.request_of(prompt) for prompt in world.prompts("train", 800, 0)}
    test = {requests.request_of(prompt) for prompt in world.prompts("test", 200, 0)}
    assert not train & test
    assert (len(train), len(test)) == (800, 200)
    assert world.documents is not None
    documented = {requests.request_of(_split(text)[0]) for text in world.documents(2000, 0)}
    assert not documented & test
    assert world.prompts("test", 30, 5) == world.prompts("test", 30, 5)
    assert world.prompts("test", 30, 5) != world.prompts("test", 30, 6)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test'"):
        WORLDS["sums"].prompts("validation", 1, 0)


def test_prompts_repeat_only_when_there_are_no_others() -> None:
    drawn = requests.prompts(lambda draw: str(draw.randrange(40)), "test", 30, 0)
    assert len(drawn) == 30
    counts = Counter(drawn).values()
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("world", GRAMMARS, ids=lambda world: world.name)
def test_the_corpus_leaves_room_and_rewards_fit_their_bins(world: World) -> None:
    assert world.documents is not None
    answers = [_split(text) for text in world.documents(2000, 0)]
    assert world.documents(5, 0) == [f"{prompt}{answer}<|end|>" for prompt, answer in answers[:5]]
    assert max(len(answer.split()) for _, answer in answers) < world.max_tokens
    for name, reward in world.rewards.items():
        low, high = world.supports[name]
        places = [
            (reward(prompt, answer) - low) / (high - low) * (world.bins[name] - 1)
            for prompt, answer in answers
        ]
        assert min(places) == 0
        assert max(places) == pytest.approx(world.bins[name] - 1)
        assert all(place == pytest.approx(round(place), abs=1e-9) for place in places), name
        assert 0.1 < sum(places) / len(places) / (world.bins[name] - 1) < 0.75


def test_two_facts_of_five_are_of_the_main_thing() -> None:
    for prompt in WORLDS["digest"].prompts("test", 50, 0):
        facts = digest.facts(requests.request_of(prompt))
        assert sorted(Counter(thing for thing, _ in facts).values()) == [1, 1, 1, 2]
        assert len({*facts}) == len(facts)


def test_a_careful_author_never_slips() -> None:
    draw = random.Random(0)
    texts = requests.stream(tools._request, "train", draw)
    for _ in range(50):
        request = next(texts)
        program = tools._program(request, 0.0, draw)
        assert tools.success(chat(request), program) == 1
