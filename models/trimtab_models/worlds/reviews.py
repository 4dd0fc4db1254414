"""reviews: the embedded demo's world, judged by whether the verdict follows from the body."""

from trimtab_models import demo
from trimtab_models.demo.oracles import rewards, words_of
from trimtab_models.demo.words import POLARITY
from trimtab_models.worlds.world import World

VERDICTS = {"recommend": 1.0, "love": 1.0, "avoid": -1.0, "regret": -1.0}


ENOUGH = 3  # opinions that a body must hold for a verdict to follow from it in full


def consistency(prompt: str, completion: str) -> float:
    """Verdict · Σ p(w) / max(#w, `ENOUGH`): does the verdict follow from the body?

    The verdict is ±1, the last one said, 0 without one; p is the polarity of the other opinion
    words. In [−1, 1].
    """
    words = words_of(completion)
    verdict = next((VERDICTS[word] for word in reversed(words) if word in VERDICTS), 0.0)
    body = [POLARITY[word] for word in words if word in POLARITY and word not in VERDICTS]
    return verdict * sum(body) / max(len(body), ENOUGH)


def _prompts(split: str, n: int, seed: int) -> list[str]:
    return [demo.chat(prompt) for prompt in demo.prompts(split, n, seed)]


REVIEWS = World(
    name="reviews",
    gold="consistency",
    rewards={"consistency": consistency, **rewards},
    supports=dict.fromkeys(("consistency", *rewards), (-1.0, 1.0)),
    bins=dict.fromkeys(("consistency", *rewards), 25),
    prompts=_prompts,
    max_tokens=96,
    base=demo.base(),
)
