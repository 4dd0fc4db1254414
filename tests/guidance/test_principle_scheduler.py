"""Rows of principles sample in the same steps as their request, whatever vLLM's scheduler does.

Random requests, with and without principles, arrive and are aborted in an engine without a model,
with little memory: vLLM's own scheduler, and random tokens.
"""

import hashlib
import json
import pickle
import random
import types
import warnings

import pytest
import torch

from trimtab.errors import InvalidGuidance
from trimtab.params import GuidanceParams
from trimtab.xargs import BESIDE_KEY, GROUP_KEY, SHADOW_KEY, to_xargs
from trimtab_models import demo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    pytest.importorskip("vllm")
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus
    from vllm.v1.structured_output import StructuredOutputManager

    from trimtab.adapters.vllm import GuidanceProcessor, beside
    from trimtab.adapters.vllm.scheduler import AsyncPrincipleScheduler, PrincipleScheduler
    from trimtab.adapters.vllm.shadows import Seeds, Shadows

BLOCK, BLOCKS, SEQUENCES, BATCHED, LENGTH = 8, 40, 6, 48, 96
STOP = 3


def scheduler(ahead):
    options = {"dtype": "float32", "max_model_len": LENGTH, "block_size": BLOCK}
    options |= {"max_num_seqs": SEQUENCES, "max_num_batched_tokens": BATCHED}
    options |= {"enable_chunked_prefill": True, "enable_prefix_caching": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = EngineArgs(model=str(demo.base()), **options).create_engine_config()
    config.scheduler_config.async_scheduling = ahead
    config.cache_config.num_gpu_blocks = BLOCKS
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return PrincipleScheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
    )


class World:
    """An engine without a model, which is `depth` steps ahead of its tokens."""

    def __init__(self, made, depth, seed):
        self.scheduler, self.depth, self.random = made, depth, random.Random(seed)
        init_none_hash(hash_of)
        self.hasher = get_request_block_hasher(BLOCK, hash_of)
        self.flying, self.count, self.tokens = [], 0, {}
        self.shadows = self.steps = self.waits = 0

    def add(self, principles, most=40):
        extra = {}
        if principles:
            sizes = [self.random.randrange(1, most // 2) for _ in range(principles)]
            extra = {BESIDE_KEY: json.dumps([[0, [9] * size] for size in sizes])}
        params = SamplingParams(
            max_tokens=self.random.randrange(1, 40), stop_token_ids=[STOP], extra_args=extra
        )
        prompt = [self.random.randrange(4, 50) for _ in range(self.random.randrange(2, most))]
        name = f"r{self.count}"
        self.count += 1
        self.tokens[name] = []
        self.scheduler.add_request(Request(name, prompt, params, None, block_hasher=self.hasher))
        return name

    def step(self):
        output = self.scheduler.schedule()
        self.steps += 1
        sampling = [
            name
            for name in output.num_scheduled_tokens
            if not self.scheduler.requests[name].is_prefill_chunk
        ]
        by_group = {}
        for name in sampling:
            params = self.scheduler.requests[name].sampling_params
            group = (params.extra_args or {}).get(GROUP_KEY)
            if group is not None:
                by_group.setdefault(group, []).append(params.extra_args.get(SHADOW_KEY))
        for name, group in self.scheduler.groups.items():
            assert len(by_group.get(name, [])) in (0, len(group.members)), "they are parted"
            numbers = {len(one.output_token_ids) for one in group.members}
            assert len(numbers) == 1
        drawn = {}
        for name in sampling:
            params = self.scheduler.requests[name].sampling_params
            main = (params.extra_args or {}).get(GROUP_KEY, name)
            drawn.setdefault(main, self.random.choice([STOP, *range(4, 30)]))
            self.shadows += SHADOW_KEY in (params.extra_args or {})
        names = list(output.num_scheduled_tokens)
        tokens = [[drawn[self.main(name)]] if name in sampling else [] for name in names]
        self.flying.append((output, names, tokens))
        if len(self.flying) >= self.depth:
            self.take()

    def main(self, name):
        params = self.scheduler.requests[name].sampling_params
        return (params.extra_args or {}).get(GROUP_KEY, name)

    def take(self):
        output, names, tokens = self.flying.pop(0)
        places = {name: place for place, name in enumerate(names)}
        made = ModelRunnerOutput(names, places, tokens)
        for of in self.scheduler.update_from_output(output, made).values():
            for one in of.outputs:
                assert "principle" not in one.request_id, "no shadow is seen outside"
                self.tokens[one.request_id] += one.new_token_ids


def hash_of(value):
    return hashlib.sha256(pickle.dumps(value)).digest()


@pytest.mark.parametrize("ahead", [False, True])
def test_members_sample_together_and_all_end(ahead):
    made = scheduler(ahead)
    assert isinstance(made, AsyncPrincipleScheduler) == isinstance(made, AsyncScheduler) == ahead
    preempted = 0
    for seed in range(6):
        world = World(made, 1 + ahead, seed)
        world.count = 1000 * seed
        alive = [world.add(world.random.choice([0, 0, 1, 1, 2, 4])) for _ in range(8)]
        for at in range(3000):
            world.step()
            if at % 7 == 0 and world.count < 1000 * seed + 30:
                alive.append(world.add(world.random.choice([0, 1, 2, 3, 5])))
            if at % 11 == 0:
                leaving = world.random.choice(alive)
                made.finish_requests(leaving, RequestStatus.FINISHED_ABORTED)
            preempted += sum(one.num_preemptions for one in made.requests.values()) > 0
            if not made.requests and world.count >= 1000 * seed + 30:
                break
        while world.flying:
            world.take()
        assert not made.requests, "all end: none waits for ever"
        assert not made.groups
        assert not made.running
        assert made.kv_cache_manager.block_pool.get_num_free_blocks() == BLOCKS - 1
        assert world.shadows > 20, "else this proves nothing"
    assert preempted > 0, "else this proves little"


def test_a_group_that_can_never_run_has_no_rows():
    made = scheduler(False)
    world = World(made, 1, 0)
    world.add(SEQUENCES)  # one row more than the batch has
    assert not made.groups
    assert len(made.requests) == 1
    world.add(SEQUENCES - 1, most=10)
    assert len(made.groups) == 1
    most = (BLOCKS - 1) // SEQUENCES * BLOCK
    for request in made.groups["r1"].members:
        assert request.num_prompt_tokens + request.max_tokens <= most
    made.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert not made.requests


def test_a_shadow_is_no_copy_of_what_is_the_requests_alone():
    made = scheduler(False)
    world = World(made, 1, 0)
    params = SamplingParams(
        max_tokens=5, logprobs=3, seed=7, logit_bias={4: 2.0}, min_tokens=2, frequency_penalty=0.5
    )
    params.extra_args = {BESIDE_KEY: json.dumps([[1, [9, 9]]]), "trimtab_beta": 2.0}
    request = Request("r", [5, 6, 7], params, None, block_hasher=world.hasher, cache_salt="s")
    made.add_request(request)
    main, shadow = made.groups["r"].members
    assert (main.request_id, type(request)) == ("r", Request), "vLLM's own stays as it is"
    assert main.sampling_params.extra_args["trimtab_beta"] == 2.0
    assert params.extra_args.get(GROUP_KEY) is None, "the caller's own are left alone"
    assert shadow.prompt_token_ids == [5, 9, 9, 6, 7]
    own = shadow.sampling_params
    assert own.extra_args == {GROUP_KEY: "r", SHADOW_KEY: 0}
    assert (own.logprobs, own.seed) == (None, None)
    assert own.logit_bias == params.logit_bias
    assert (own.min_tokens, own.frequency_penalty) == (2, 0.5)
    assert shadow.cache_salt == "s"


# --- the worker's side, and the front end's ------------------------------------------------------


def entered(places):
    shadows = Shadows()
    for place, (group, number) in places.items():
        extra = {GROUP_KEY: group} | ({} if number is None else {SHADOW_KEY: number})
        assert shadows.enter(place, extra) == (number is not None)
    return shadows


def test_rows_meet_and_share_their_tokens():
    shadows = entered({0: ("a", 1), 1: ("a", None), 2: ("b", 0), 3: ("a", 0), 4: ("b", None)})
    lengths = {0: (0, 5), 1: (1, 5), 2: (2, 9), 3: (3, 5), 4: (4, 9)}
    assert shadows.meet(lengths) == {1: (3, 0), 4: (2,)}
    sampled = torch.tensor([[10], [11], [12], [13], [14]])
    shadows.copy(sampled)
    assert sampled[:, 0].tolist() == [11, 11, 14, 11, 14]
    shadows.copy(sampled.add_(1))
    assert sampled[:, 0].tolist() == [12, 12, 15, 12, 15], "copies belong to one step"
    assert shadows.meet({**lengths, 0: (0, 4)}) == {4: (2,)}, "of another token of the answer"
    del lengths[3]
    assert shadows.meet(lengths) == {1: (0,), 4: (2,)}  # one of two: the guide refuses the row


def test_places_move_and_are_reused():
    shadows = entered({0: ("a", None), 1: ("a", 0), 2: ("b", None)})
    shadows.move(2, 1, swap=True)
    assert shadows.meet({0: (0, 1), 1: (1, 1), 2: (2, 1)}) == {0: (2,), 1: ()}
    shadows.move(2, 0, swap=False)
    assert shadows.meet({0: (0, 1), 1: (1, 1)}) == {1: ()}
    shadows.enter(1, {})
    assert (shadows.of.keys(), shadows.mains) == ({0}, {})


class Sampler(torch.nn.Module):
    def forward(self, out):
        return out


def test_a_samplers_tokens_are_copied():
    shadows = entered({0: ("a", None), 1: ("a", 0)})

    class V2:
        def sample(self, sampled):
            return sampled, None

    for sampler in (Sampler(), V2()):
        shadows.watch(sampler)
        shadows.meet({0: (0, 1), 1: (1, 1)})
        if isinstance(sampler, V2):
            assert sampler.sample(torch.tensor([8, 9]))[0].tolist() == [8, 8]
        else:
            out = types.SimpleNamespace(sampled_token_ids=torch.tensor([[8], [9]]))
            assert sampler(out).sampled_token_ids.tolist() == [[8], [8]]


def test_generators_of_rows_that_load_are_taken_and_given_back():
    generators = {0: "g0", 1: "g1"}
    batch = types.SimpleNamespace(
        generators=generators, req_ids=["a", "b"], req_id_to_index={"a": 0, "b": 1}
    )
    requests = {name: types.SimpleNamespace(generator=g) for name, g in (("a", "g0"), ("b", "g1"))}
    runner, seeds = types.SimpleNamespace(input_batch=batch, requests=requests), Seeds()
    seeds.take(runner, [False, True])
    assert generators == {0: "g0"}
    batch.req_ids, batch.req_id_to_index = ["b"], {"b": 0}  # a has ended, b has moved
    generators.clear()
    seeds.take(runner, [False])
    assert generators == {0: "g1"}


def test_a_stock_front_end_refuses_principles(monkeypatch):
    params = SamplingParams(extra_args=to_xargs(GuidanceParams(negative_prompt="x")))
    monkeypatch.setattr(beside, "served", [beside.STOCK])
    with pytest.raises(InvalidGuidance, match="only trimtab serve"):
        GuidanceProcessor.validate_params(params)
    monkeypatch.setattr(beside, "served", [None])
    GuidanceProcessor.validate_params(params)
    params.repetition_penalty = 1.2
    with pytest.raises(InvalidGuidance, match="repetition_penalty"):
        GuidanceProcessor.validate_params(params)


@pytest.mark.parametrize("key", [GROUP_KEY, SHADOW_KEY])
def test_no_client_joins_a_group(key):
    """Not even on a stock front end, where a client may write any extra argument."""
    for value in ("x", "0", 0):
        with pytest.raises(InvalidGuidance, match="set by the server"):
            GuidanceProcessor.validate_params(SamplingParams(extra_args={key: value}))


def engine(**fields):
    config = types.SimpleNamespace(
        num_speculative_tokens=0,
        kv_transfer_config=None,
        scheduler_config=types.SimpleNamespace(
            scheduler_cls=beside.SCHEDULER, policy="fcfs", max_num_seqs=4
        ),
        parallel_config=types.SimpleNamespace(pipeline_parallel_size=1),
        model_config=types.SimpleNamespace(max_model_len=20),
    )
    for name, value in fields.items():
        owner, _, field = name.rpartition("__")
        setattr(getattr(config, owner) if owner else config, field, value)
    return config


def test_engines_without_principles():
    assert beside.problem(engine()) is None
    for fields in (
        {"num_speculative_tokens": 2},
        {"kv_transfer_config": object()},
        {"scheduler_config__scheduler_cls": None},
        {"scheduler_config__policy": "priority"},
        {"scheduler_config__max_num_seqs": 1},
        {"parallel_config__pipeline_parallel_size": 2},
    ):
        assert "cannot run principles" in beside.problem(engine(**fields)), fields


class Words:
    def encode(self, text, add_special_tokens=True):
        return [1] * len(text.split())


def test_what_a_request_carries():
    def carried(prompt, number=1, **fields):
        principles = [{"text": "a b c", "weight": 1}] * number
        params = GuidanceParams.parse({"principles": principles, **fields})
        return beside.carried(params, prompt, Words(), engine())

    assert carried([5, 6]) == {BESIDE_KEY: "[[0, [1, 1, 1]]]"}
    assert carried([5, 6], beta=0) == carried([5, 6], number=0) == {}
    for prompt, number in (([5], 1), (None, 1), ([5] * 17, 1), ([5, 6], 4)):
        with pytest.raises(InvalidGuidance):
            carried(prompt, number)
