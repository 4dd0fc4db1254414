"""Rows of principles sample in the same steps as their request, whatever vLLM's scheduler does.

Random requests, with and without principles, arrive and are aborted in an engine without a model,
with little memory: vLLM's own scheduler, and random tokens.
"""

import json
import random
import warnings

import pytest
import torch

from trimtab.xargs import BESIDE_KEY, GROUP_KEY, SHADOW_KEY
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

    from trimtab.adapters.vllm.scheduler import AsyncPrincipleScheduler, PrincipleScheduler

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

    def add(self, principles):
        extra = {}
        if principles:
            sizes = [self.random.randrange(1, 20) for _ in range(principles)]
            extra = {BESIDE_KEY: json.dumps([[0, [9] * size] for size in sizes])}
        params = SamplingParams(
            max_tokens=self.random.randrange(1, 40), stop_token_ids=[STOP], extra_args=extra
        )
        prompt = [self.random.randrange(4, 50) for _ in range(self.random.randrange(2, 40))]
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
    import hashlib
    import pickle

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
    world.add(SEQUENCES - 1)
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
    assert main is request
    assert main.sampling_params.extra_args["trimtab_beta"] == 2.0
    assert params.extra_args.get(GROUP_KEY) is None, "the caller's own are left alone"
    assert shadow.prompt_token_ids == [5, 9, 9, 6, 7]
    own = shadow.sampling_params
    assert own.extra_args == {GROUP_KEY: "r", SHADOW_KEY: 0}
    assert (own.logprobs, own.seed) == (None, None)
    assert own.logit_bias == params.logit_bias
    assert (own.min_tokens, own.frequency_penalty) == (2, 0.5)
    assert shadow.cache_salt == "s"
