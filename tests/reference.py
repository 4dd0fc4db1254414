"""Guided decoding as slowly and plainly as it can be done: what the engine must equal.

Every step re-forwards the whole prefix through the base, and the prefix with each candidate
through each scorer, with transformers' own attention and no cache of any kind.
"""

import functools
import math

import torch

from trimtab.candidates import select_reference
from trimtab.fusion import fuse_reference
from trimtab.params import GuidanceParams
from trimtab_models.checkpoint import load
from trimtab_models.readout import soft_value_reference

LINKS = {
    "identity": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "log_sigmoid": lambda x: -math.log1p(math.exp(-x)),
}


def normalised(state):
    return (state - state.mean()) / (state.var(correction=0) + 1e-5).sqrt()


class Reference:
    def __init__(self, base, scorers, words=None):
        """base: a causal LM. scorers: name → checkpoint of a head, distribution or probe.

        words: a principle's text → its tokens before the prompt.
        """
        self.base, self.words = base.eval(), words or {}
        self.scorers = {name: load(path) for name, path in scorers.items()}
        # Settings that are compared on the same prompts begin with the same prefixes.
        self.logits = functools.lru_cache(maxsize=4096)(self._logits)
        self.outputs = functools.lru_cache(maxsize=100_000)(self._outputs)
        self.probed = functools.lru_cache(maxsize=100_000)(self._probed)

    @torch.inference_mode()
    def _logits(self, prefix):
        return self.base(torch.tensor([prefix]), use_cache=False).logits[:, -1].float()

    def scores(self, name, prefix, candidates, params, start=0):
        """One score a candidate, as the request with these parameters gets it.

        start: length of the prompt, where the answer of which a probe reads the mean begins.
        """
        info = self.scorers[name][1]
        if info.family == "probe":
            outputs = self.probed(name, tuple(prefix), tuple(candidates), start)
        else:
            outputs = self.outputs(name, tuple(prefix), tuple(candidates))
        if info.support is None:
            return [LINKS[info.link](value) for [value] in outputs]
        c = params.beta * params.scorers[name] / (info.deviation if params.normalize else 1)
        low, high = info.support
        step = (high - low) / (len(outputs[0]) - 1)
        returns = [low + step * b for b in range(len(outputs[0]))]
        histograms = [torch.tensor(row).double().softmax(0).tolist() for row in outputs]
        return [soft_value_reference(p, returns, c) for p in histograms]

    @torch.inference_mode()
    def _outputs(self, name, prefix, candidates):
        model, _ = self.scorers[name]
        ids = torch.tensor([[*prefix, c] for c in candidates])
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        head = model.score if hasattr(model, "score") else model.classifier
        return head(hidden).tolist()

    def states(self, prefix):
        """The base's state at each token, [length, hidden]."""
        return self.base.base_model(torch.tensor([prefix]), use_cache=False).last_hidden_state[0]

    @torch.inference_mode()
    def _probed(self, name, prefix, candidates, start):
        """outputs[b] = A(u)[b] + ⟨B(u)[b], P·e_v⟩/√r, u = MLP of the last state and the mean."""
        model, _ = self.scorers[name]
        answer = self.states(prefix)[max(start, 1) - 1 :].double()
        u = torch.cat([normalised(answer[-1]), normalised(answer.mean(0))]).float()
        hidden = torch.nn.functional.silu(model.trunk[0](u))
        embedding = self.base.get_output_embeddings().weight
        scale = embedding.square().mean().sqrt()
        rows = model.factors(hidden).view(model.config.outputs, -1)
        level, rank = model.level(hidden), model.config.rank
        tokens = model.tokens(embedding[list(candidates)] / scale)  # [candidates, rank]
        return (level + tokens @ rows.T / rank**0.5).tolist()

    @torch.inference_mode()
    def step(self, prefix, params: GuidanceParams, start=0):
        """The fused logits after `prefix`, and KL(π ‖ π0) over the whole vocabulary."""
        logits = self.logits(tuple(prefix))
        if params.beta == 0:
            return logits[0], 0.0
        k, mass = torch.tensor([params.k]), torch.tensor([params.mass])
        [candidates] = select_reference(logits, k, mass)
        bonus = [0.0] * len(candidates)
        for name, weight in (params.scorers or {}).items():
            info = self.scorers[name][1]
            for i, score in enumerate(self.scores(name, prefix, candidates, params, start)):
                scaled = (score - info.mean) / info.deviation if params.normalize else score
                bonus[i] += params.beta * weight * scaled
        for principle in params.said.values():
            after = self.logits((*self.words[principle.text], *prefix))[0].log_softmax(-1)
            for i, change in enumerate((after - logits[0].log_softmax(-1))[candidates].tolist()):
                bonus[i] += params.beta * principle.weight * change
        fused = fuse_reference(logits, [candidates], [bonus], [params.tail])[0]
        log_p, log_q = fused.double().log_softmax(-1), logits[0].double().log_softmax(-1)
        terms = torch.where(log_p > -1e30, log_p.exp() * (log_p - log_q), 0.0)
        return fused, float(terms.sum())

    def greedy(self, prompt, params, max_tokens, eos=None):
        """Tokens and total KL of the greedy guided answer."""
        prefix, total = list(prompt), 0.0
        for _ in range(max_tokens):
            fused, kl = self.step(prefix, params, len(prompt))
            prefix.append(int(fused.argmax()))
            total += kl
            if prefix[-1] == eos:
                break
        return prefix[len(prompt) :], total

    def replay(self, prompt, answer, params):
        """Total KL along a given answer; infinite if a token of it could not be sampled."""
        total = 0.0
        for i, token in enumerate(answer):
            fused, kl = self.step([*prompt, *answer[:i]], params, len(prompt))
            total += kl if fused[token] > -math.inf else math.inf
        return total
