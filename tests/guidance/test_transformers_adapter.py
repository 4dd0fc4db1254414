"""transformers.generate, guided, equals the plain reference."""

import pytest
import torch
from reference import Reference
from transformers import LogitsProcessorList

from networks import LENGTH, VOCAB, configs
from trimtab import GuidanceConfig, GuidanceParams, ScorerFault
from trimtab.adapters.transformers import TransformersGuidance
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.scorers import FunctionScorer
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head, vocabulary_head


def network(make, family, seed):
    torch.manual_seed(seed)
    model = make(configs()[family])
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.config.eos_token_id = model.config.bos_token_id = None
    return model


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["truncate", "mean"])
def test_left_padded_batch_equals_the_reference(tmp_path, tail):
    base = network(vocabulary_head, "llama", 0)
    base.generation_config.eos_token_id = None
    path = save(network(scalar_head, "gpt2", 1), None, ScorerInfo(), tmp_path / "value")
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"value": {"path": str(path)}}}})
    guide = Guide(load_scorers(config, max_length=LENGTH, vocab_size=VOCAB))
    params = GuidanceParams(scorers={"value": 1.0}, beta=3.0, tail=tail)
    prompts = [[5, 6, 7, 8], [9], [1, 2]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    out = base.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([TransformersGuidance(guide, params, mask)]),
    )
    reference = Reference(base, {"value": path})
    for row, prompt in zip(out, prompts, strict=True):
        tokens, _ = reference.greedy(prompt, params, 12)
        assert row[width:].tolist() == tokens
    plain = base.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert not torch.equal(plain, out)


def test_a_fault_is_raised_or_passed_over():
    guide = Guide({"bad": FunctionScorer(lambda ids: 1 / 0)})
    scores = torch.zeros(1, VOCAB)
    with pytest.raises(ScorerFault, match="bad"):
        TransformersGuidance(guide, GuidanceParams())(torch.tensor([[1, 2]]), scores)
    calm = TransformersGuidance(guide, GuidanceParams(on_error="unguided"))
    assert torch.equal(calm(torch.tensor([[1, 2]]), scores), scores)
