"""reviews: the embedded demo's world; the reward is for praise with a consistent verdict."""

from trimtab_lab.worlds.world import World
from trimtab_models import demo
from trimtab_models.demo.oracles import rewards, words_of
from trimtab_models.demo.words import POLARITY

VERDICTS = {"recommend": 1.0, "love": 1.0, "avoid": -1.0, "regret": -1.0}


ENOUGH = 3  # opinion words that a body needs for the full reward


def consistency(prompt: str, completion: str) -> float:
    """m · (1 + v) / 2: praise counts in full only with a positive verdict.

    m = Σ p(w) / max(#w, `ENOUGH`) is the mean polarity of the body, over the opinion words that are
    not verdicts; v is the last verdict, ±1, or 0 without one. In [−1, 1]: 1 is praise with a
    recommendation, −1 is criticism with a recommendation; a negative verdict gives 0.
    """
    words = words_of(completion)
    verdict = next((VERDICTS[word] for word in reversed(words) if word in VERDICTS), 0.0)
    body = [POLARITY[word] for word in words if word in POLARITY and word not in VERDICTS]
    return (1 + verdict) / 2 * sum(body) / max(len(body), ENOUGH)


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
