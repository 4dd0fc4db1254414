"""One conformance suite for every vLLM runner, run in a process of its own.

    python conformance.py v1|v1-async|v2|v2-drafts DIRECTORY

Random networks: a base and four scorers that disagree with it strongly: two of one number, of
which one is a classifier's logit, a distribution, and a probe of the base's states. Every check
compares greedy tokens, KL and final scores of requests inside a busy engine with the plain
reference, and prints a line of JSON: how many were compared and how many differ. At the end of v1
stands a control: with rows that are never moved nor cleared, some must differ. v2-drafts is v2 with
speculative decoding by n-grams, of a base that repeats itself.
"""

import functools
import json
import math
import sys
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import runners

RUNNER, ROOT = sys.argv[1], Path(sys.argv[2])
DRAFTS = RUNNER == "v2-drafts"
runners.use("v2" if DRAFTS else RUNNER)

import torch  # noqa: E402
from probes_made import made  # noqa: E402
from reference import Reference  # noqa: E402
from sampled import Places, remember_drafts  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from trimtab.adapters.vllm import beside  # noqa: E402
from trimtab.params import GuidanceParams  # noqa: E402
from trimtab.xargs import BESIDE_KEY, RECORD_KEY, to_xargs  # noqa: E402
from trimtab_models.checkpoint import ScorerInfo, save  # noqa: E402
from trimtab_models.networks import scalar_head  # noqa: E402

VOCAB, LENGTH = 96, 256
SCORERS = ("red", "blue", "green")
PROBE = "grey"
SLOW = RUNNER.startswith("v2")  # Triton's interpreter
WORDS = {"be brief": [7, 3, 11], "be kind": [50, 2, 2, 31, 8, 64, 9]}
"""Principles, and their tokens: there is no tokenizer."""
ABORTED = [(1, 2), (4, 3), (7, 4)]


def network(make, seed, hidden):
    torch.manual_seed(seed)
    model = make(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=False,
            eos_token_id=VOCAB - 1,
            bos_token_id=None,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def build():
    base = network(LlamaForCausalLM, 0, 64)
    if DRAFTS:  # few tokens, and the next one follows mostly from the last
        base.lm_head.weight.data[:6] *= 3
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.data *= 0.1
            layer.mlp.down_proj.weight.data *= 0.1
    base.save_pretrained(ROOT / "base")
    kinds = (
        {},
        {"link": "log_sigmoid"},
        {"family": "distribution", "support": (-2.0, 3.0)},
    )
    for seed, (name, kind) in enumerate(zip(SCORERS, kinds, strict=True), 1):
        info = ScorerInfo(mean=0.3 * seed, deviation=0.5 * seed, **kind)
        bins = 7 if "support" in kind else 1
        make = functools.partial(scalar_head, bins=bins)
        save(network(make, seed, 32), None, info, ROOT / name)
    made(ROOT / PROBE, ROOT / "base", support=(-2.0, 3.0), mean=0.4, deviation=1.5)
    return Reference(base, {name: ROOT / name for name in (*SCORERS, PROBE)}, WORDS)


def engine():
    from vllm import LLM

    ngrams = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    drafts = {"speculative_config": {**ngrams, "prompt_lookup_min": 1}} if DRAFTS else {}
    return LLM(
        str(ROOT / "base"),
        **drafts,
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=LENGTH,
        disable_log_stats=True,
        block_size=32,
        num_gpu_blocks_override=14,  # five long rows do not fit: preemption
        max_num_batched_tokens=64,  # prompts come in chunks
        max_num_seqs=8,
        enable_prefix_caching=True,
        logits_processors=["trimtab.adapters.vllm:GuidanceProcessor"],
        worker_extension_cls="trimtab.adapters.worker.GuidanceWorker",
        scheduler_cls=beside.SCHEDULER,
        additional_config={
            "trimtab": {
                "scorers": {name: {"path": str(ROOT / name)} for name in (*SCORERS, PROBE)},
                "cache_bytes": 3 * (LENGTH + 300) * 2 * 2 * 32 * 4,  # little more than one row
            }
        },
    ).llm_engine


def params(guidance, max_tokens, key, n=1, seed=None):
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    extra = {} if guidance is None else {**to_xargs(guidance), RECORD_KEY: key}
    if guidance is not None and guidance.said and guidance.steers:
        tokens = [[0, WORDS[one.text]] for one in guidance.said.values()]
        extra[BESIDE_KEY] = json.dumps(tokens)
    # No seed on V1: on the CPU, vLLM 0.32 dies of a seeded request whose prompt comes in chunks.
    sampled = {"temperature": 1.0 if n > 1 or seed is not None else 0.0, "seed": seed}
    return SamplingParams(
        **sampled,
        max_tokens=max_tokens,
        n=n,
        extra_args=extra,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


class Suite:
    def __init__(self):
        self.reference, self.engine = build(), engine()
        self.engine.collective_rpc("trimtab_scorers")
        beside.serve(self.engine.vllm_config)
        config = self.engine.vllm_config
        facts = {
            "v2": config.use_v2_model_runner,
            "asynchronous": config.scheduler_config.async_scheduling,
        }
        print(json.dumps(facts), flush=True)
        self.generator = torch.Generator().manual_seed(1)
        self.count = 0

    def prompt(self, length):
        return torch.randint(VOCAB - 1, (length,), generator=self.generator).tolist()

    def guidance(self, i):
        """Settings that differ in every way."""
        brief, kind = ({"text": text, "weight": 1 - i * 1.5} for i, text in enumerate(WORDS))
        settings = [
            GuidanceParams(scorers={"red": 1.0}, beta=3.0),
            GuidanceParams(principles=[brief], beta=2.0).resolve([]),
            GuidanceParams(scorers={"green": 1.0}, beta=4.0, mass=1.0, k=10, tail="mean"),
            GuidanceParams(scorers={"grey": 1.0}, beta=4.0),
            GuidanceParams(scorers={"red": 1.0, "blue": 0.5}, beta=3.0, tail="mean"),
            None,
            GuidanceParams(scorers={"green": -1.0, "red": 0.5}, beta=2.0, normalize=True),
            GuidanceParams(scorers={"green": 1.0}, beta=0.0),
            GuidanceParams(scorers={"blue": -1.0}, beta=2.0, mass=1.0, k=10),
            GuidanceParams(scorers={"grey": -1.0, "red": 0.5}, beta=3.0, normalize=True),
            GuidanceParams(scorers={"red": -2.0, "blue": 1.0}, beta=1.0, mass=0.9, normalize=True),
            GuidanceParams(scorers={"red": 1.0}, principles=[brief, kind], beta=2.0, mass=1.0),
            GuidanceParams(negative_prompt="be kind", beta=1.0, tail="truncate").resolve([]),
            GuidanceParams(scorers={"green": 1.0}, principles=[brief], beta=0.0),
        ]
        if DRAFTS:  # principles are not served with draft tokens
            settings = [one for one in settings if one is None or not one.said]
        return settings[i % len(settings)]

    def run(self, requests, abort=(), seed=None):
        """Requests (prompt, guidance, max_tokens, n) at once; finished outputs by request id.

        seed: of the first one's samples; without it only siblings are sampled.
        """
        ids = []
        for i, (prompt, guidance, max_tokens, n) in enumerate(requests):
            ids.append(f"r{self.count}")
            self.count += 1
            own = params(guidance, max_tokens, ids[-1], n, None if seed is None else seed + i)
            self.engine.add_request(ids[-1], {"prompt_token_ids": prompt}, own)
        finished, steps = {}, 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    finished[output.request_id] = output
            steps += 1
            for request, at in abort:
                if steps == at:
                    self.engine.abort_request([ids[request]])
        return [finished.get(i) for i in ids]

    def compare(self, name, requests, abort=(), seed=None):
        outputs = self.run(requests, abort, seed)
        compared = mismatches = 0
        for output, (prompt, guidance, max_tokens, n) in zip(outputs, requests, strict=True):
            if output is None or output.outputs[0].finish_reason == "abort":
                continue
            settings = guidance or GuidanceParams(beta=0.0)
            tokens, kl = self.reference.greedy(prompt, settings, max_tokens, VOCAB - 1)
            if n > 1 and len({tuple(o.token_ids) for o in output.outputs}) == 1:
                mismatches += 1  # siblings are meant to differ, or they prove nothing
            answers = [list(o.token_ids) for o in output.outputs]
            [records] = self.engine.collective_rpc(
                "trimtab_record", args=(output.request_id, prompt, answers, True)
            )
            for answer, record in zip(answers, records, strict=True):
                compared += 1
                if n > 1:
                    kl = self.reference.replay(prompt, answer, settings)
                same = kl < math.inf if n > 1 else answer == tokens
                if guidance is not None:
                    before, last = [*prompt, *answer[:-1]], answer[-1:]
                    final = {
                        s: self.reference.scores(s, before, last, guidance, len(prompt))[0]
                        for s in guidance.scorers
                    }
                    same = (
                        same
                        and record is not None
                        and record["error"] is None
                        and abs(record["kl"] - kl) <= 1e-3 * max(1.0, kl)
                        and record["steps"] == (len(answer) if guidance.beta else 0)
                        and all(abs(record["scores"][s] - final[s]) < 1e-4 for s in final)
                    )
                mismatches += not same
        report(name, compared, mismatches)
        return outputs

    def drafts(self):
        few = [(self.prompt(5 + 3 * i), self.guidance(i), 16, 1) for i in range(10)]
        self.compare("mixed settings in one batch", few)
        before = PREEMPTED[0]
        crowd = [(self.prompt(60), self.guidance(i), 34, 1) for i in range(5)]
        self.compare("preemption", crowd)
        report("preemptions happened", PREEMPTED[0] - before, 0)
        known = remember_drafts()
        several = [(self.prompt(20), self.guidance(i), 16, n) for i, n in ((4, 2), (5, 6))]
        outputs = self.compare("n > 1", several, seed=1)
        report("draft tokens were accepted", ACCEPTED[0], 0)
        report("draft tokens were rejected", ACCEPTED[1], 0)
        self.distributed(several[1], outputs[1], known)

    def distributed(self, request, output, known):
        """Where draft tokens were verified, tokens have the guided distribution, not the base's."""
        prompt, guidance, _, _ = request
        places = Places(self.reference)
        for answer in output.outputs:
            for i, token in enumerate(answer.token_ids):
                prefix = [*prompt, *answer.token_ids[:i]]
                if (draft := known.get(tuple(prefix))) is not None:
                    places.add(prefix, token, guidance, len(prompt), draft)
        fits = places.p_value() > 1e-3 and abs(places.z()) < 3.3
        report("sampled tokens follow guidance", len(places), int(not fits))
        refused = places.p_value("base") < 1e-6 and places.z("base") > 5
        report("the control: not the base", len(places), int(not refused))

    def all(self):
        few = 8 if SLOW else 24
        mixed = [
            (self.prompt(5 + 3 * i), self.guidance(i), few, 1) for i in range(6 if SLOW else 18)
        ]
        self.compare("mixed settings in one batch", mixed)
        long = [(self.prompt(100 + i), self.guidance(i), few, 1) for i in range(3 if SLOW else 6)]
        self.compare("chunked prefill", long)
        grow = 50 if SLOW else 70
        crowd = [(self.prompt(60), self.guidance(i), grow, 1) for i in range(5 if SLOW else 8)]
        before = PREEMPTED[0]
        self.compare("preemption", crowd)
        report("preemptions happened", PREEMPTED[0] - before, 0)
        several = [(self.prompt(20), self.guidance(i), few, 3) for i in range(2 if SLOW else 4)]
        self.compare("n > 1", several)
        churn = self.churn()
        self.compare("rows moved, replaced and aborted", churn, abort=ABORTED)
        again = self.run([churn[0]])[0]  # the engine is as good as new
        tokens, _ = self.reference.greedy(churn[0][0], churn[0][1], churn[0][2], VOCAB - 1)
        report("after all that", 1, int(list(again.outputs[0].token_ids) != tokens))

    def churn(self):
        """Short rows end and are replaced or moved while long ones go on."""
        few = 8 if SLOW else 24
        return [
            (self.prompt(4 + i), self.guidance(i), few if i % 3 else 2, 1)
            for i in range(12 if SLOW else 30)
        ]


def report(check, compared, mismatches):
    print(json.dumps({"check": check, "compared": compared, "mismatches": mismatches}), flush=True)


PREEMPTED = [0]


def count_preemptions():
    from vllm.v1.core.sched.scheduler import Scheduler

    original = Scheduler._preempt_request

    def counted(self, *args, **kwargs):
        PREEMPTED[0] += 1
        return original(self, *args, **kwargs)

    Scheduler._preempt_request = counted


ACCEPTED = [0, 0]
"""Draft tokens that were accepted, and that were not."""


def count_drafts():
    from vllm.v1.core.sched.scheduler import Scheduler

    original = Scheduler.make_spec_decoding_stats

    def counted(self, stats, num_draft_tokens, num_accepted_tokens, *args, **kwargs):
        ACCEPTED[0] += num_accepted_tokens
        ACCEPTED[1] += num_draft_tokens - num_accepted_tokens
        return original(self, stats, num_draft_tokens, num_accepted_tokens, *args, **kwargs)

    Scheduler.make_spec_decoding_stats = counted


def plant_stale_rows():
    """A control: with rows that are never moved nor cleared, the suite must find mismatches."""
    from trimtab.adapters.vllm import GuidanceProcessor

    original = GuidanceProcessor.update_state

    def careless(self, update):
        if update is not None:
            update = types.SimpleNamespace(removed=[], added=update.added, moved=[])
        original(self, update)

    GuidanceProcessor.update_state = careless


if __name__ == "__main__":
    torch.set_num_threads(1)
    count_preemptions()
    count_drafts()
    suite = Suite()
    suite.drafts() if DRAFTS else suite.all()
    if RUNNER == "v1":
        plant_stale_rows()
        suite.compare("the control", suite.churn(), abort=ABORTED)
