"""What rollout_engine.py checks of searches on its engine; prints a line of JSON a check."""

import json

from trimtab.errors import TrimtabError
from trimtab.params import GuidanceParams
from trimtab.search import Beam, BestOfN, Blockwise, Mcts, SearchParams, Smc, TextBlock
from trimtab_models import demo

METHODS = [
    BestOfN(n=6),
    Blockwise(n=4, block=6),
    Beam(width=2, expand=3, block=TextBlock(until=".", tokens=12)),
    Smc(particles=6, block=6),
    Mcts(simulations=4),
]


def say(check, **facts):
    print(json.dumps({"check": check, **facts}), flush=True)


def refusal(call, *args, **named):
    try:
        call(*args, **named)
    except TrimtabError as error:
        return error.message
    return ""


def check(sampler):
    prompts = [sampler.tokenizer(demo.chat(x)).input_ids for x in demo.prompts("test", 4, seed=3)]
    plain = GuidanceParams(scorers={"sentiment": 1.0, "brevity": 0.3}, beta=0.0)
    steered = plain.model_copy(update={"beta": 4.0})
    options = {"seed": 1, "max_tokens": 40, "params": plain}

    def forwarded():
        [statuses] = sampler.engine.collective_rpc("trimtab_scorers")
        return sum(scorer["tokens_forwarded"] for scorer in statuses)

    best_results = sampler.search(prompts, BestOfN(n=6), **options)
    drawn = sampler.sample(prompts, 6, seed=1, temperature=1.0, max_tokens=40)
    values = [
        [one.value for one in sampler.score([[*ids, *y.token_ids] for y in group], plain)]
        for ids, group in zip(prompts, drawn, strict=True)
    ]
    best = [
        group[max(range(6), key=own.__getitem__)].token_ids
        for group, own in zip(drawn, values, strict=True)
    ]
    say(
        "best of n",
        equal=sum(r.token_ids == list(y) for r, y in zip(best_results, best, strict=True)),
        values=max(
            abs(a - b)
            for r, own in zip(best_results, values, strict=True)
            for a, b in zip(r.facts["values"], own, strict=True)
        ),
        drawn=[r.usage.drawn_tokens for r in best_results]
        == [sum(len(y.token_ids) for y in group) for group in drawn],
    )

    mcts = sampler.search(prompts, Mcts(simulations=0), **{**options, "params": steered})
    greedy = sampler.sample(prompts, 1, seed=0, temperature=0.0, max_tokens=40, params=steered)
    base = sampler.sample(prompts, 1, seed=0, temperature=0.0, max_tokens=40)
    say(
        "greedy",
        equal=sum(r.token_ids == y.token_ids for r, [y] in zip(mcts, greedy, strict=True)),
        moved=sum(x.token_ids != y.token_ids for [x], [y] in zip(base, greedy, strict=True)),
    )

    for params in METHODS:
        before = forwarded()
        guidance = steered if params.method == "smc" else plain
        results = sampler.search(prompts, params, **{**options, "params": guidance})
        spent = forwarded() - before
        say(
            "method",
            method=params.method,
            spent=spent,
            counted=sum(r.usage.scorer_tokens for r in results),
            value=sum(r.value for r in results) / len(results),
        )
    say("drawing", value=sum(map(sum, values)) / 24)

    # One search alone, for comparison with the server.
    for params in METHODS:
        [result] = sampler.search(prompts[:1], params, **{**options, "params": steered})
        say(
            "alone",
            method=params.method,
            search=params.model_dump(),
            prompt=prompts[0],
            answer=result.token_ids,
            facts=result.facts,
            usage=vars(result.usage),
        )

    long = prompts[0] * 8
    [result] = sampler.search([long], BestOfN(n=8), **options)
    say("prefix", read=result.usage.read_tokens, whole=8 * len(long))
    say("entries", left=leftover(sampler))

    bare = type(sampler).__new__(type(sampler))
    bare.scorers = {}
    say(
        "refusals",
        scorers=refusal(bare.search, prompts, BestOfN(), **options),
        long=refusal(sampler.search, [[5] * 500], BestOfN(), **options),
        short=refusal(sampler.score, [[5]], plain),
        unknown=refusal(sampler.score, [[5, 6]], GuidanceParams(scorers={"zebra": 1.0})),
        fault=refusal(sampler.score, [long], GuidanceParams(scorers={"faulty": 1.0})),
        method=refusal(SearchParams.parse, {"method": "zebra"}),
    )


def leftover(sampler):
    """How many rows of searches the scorers' pools still hold."""

    def count(worker):
        from trimtab.adapters.vllm.search import FIRST_ROW
        from trimtab.adapters.vllm.worker import _processor

        scorers = _processor(worker.model_runner).guide.registry.scorers.values()
        pools = [s.backbone.pool for s in scorers if hasattr(s, "backbone")]
        return sum(key >= FIRST_ROW for pool in pools for key in pool.entries)

    return sampler.engine.collective_rpc(count)[0]
