"""Scorers in the same process as a model: guidance for transformers, and scores of texts.

guidance = Guidance({"kindness": "my-org/kindness"}, tokenizer, beta=4.0)
model.generate(**inputs, logits_processor=guidance.processors(**inputs))
guidance.score(["What a kind answer.", "Go away."])
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from trimtab.adapters.other_rows import OtherRows
from trimtab.adapters.transformers import TransformersGuidance
from trimtab.config import CACHE_BYTES, GuidanceConfig
from trimtab.errors import InvalidGuidance, InvalidRequest, ScorerFault, unreadable
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import next_key
from trimtab.scoring.states import HiddenStates
from trimtab.scoring.text import Turns
from trimtab.scoring.turns import turns
from trimtab.search.scoring import score_answers, score_sequences

SCORED_AT_ONCE = 256
"""Maximum number of texts scored in one batch."""


class Guidance:
    """Loaded scorers and their guidance parameters.

    Args:
        scorers: name → a checkpoint's directory or hub name, or the fields of a ScorerSpec.
        tokenizer: of the base model.
        model: the base itself, whose states probes read, and which principles run once more for
            each of their rows; other scorers do not need it.
        max_length: longest prefix, in tokens.
        cache_bytes: memory for the prefix caches of all scorers.
        device: of the scorers; preferably the base's device.
        dtype: of their weights.
        fields: of GuidanceParams, such as beta, k, mass, and `weights` by scorer.

    Raises:
        ScorerLoadError: a scorer cannot be loaded, or cannot be served exactly.
        InvalidGuidance: a field is unknown or out of range.
        UnknownScorer: `weights` names a scorer that is not loaded.
    """

    def __init__(
        self,
        scorers: Mapping[str, str | Mapping[str, Any]],
        tokenizer: Any,
        *,
        model: Any = None,
        max_length: int = 8192,
        cache_bytes: int = CACHE_BYTES,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, float] | None = None,
        **fields: Any,
    ) -> None:
        specs = {
            name: {"path": str(spec)} if not isinstance(spec, Mapping) else dict(spec)
            for name, spec in scorers.items()
        }
        section = {"scorers": specs, "cache_bytes": cache_bytes}
        config = GuidanceConfig.parse({"trimtab": section})
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.guide = Guide(
            load_scorers(
                config,
                max_length=max_length,
                vocab_size=len(tokenizer),
                tokenizer=tokenizer,
                dtype=dtype,
                device=device,
                model=None if model is None else model.name_or_path,
            )
        )
        reading = any(scorer.reads_states for scorer in self.guide.registry.scorers.values())
        self.model = model if reading else None
        outputs = None if self.model is None else self.model.get_output_embeddings()
        self.hidden = None if outputs is None else HiddenStates(outputs)
        self.others = None if model is None else OtherRows(model, tokenizer)
        if weights is not None:
            fields["scorers"] = dict(weights)
        self.params = GuidanceParams.parse(fields).resolve(self.guide.registry.scorers)

    def processors(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        **_: Any,
    ) -> LogitsProcessorList:
        """The `logits_processor` of one call of `generate`; create a new one for each call.

        Pass the arguments of `generate`; `attention_mask` marks the left padding, and a kl_budget
        is spread over `max_new_tokens`.
        """
        guidance = TransformersGuidance(
            self.guide, self.params, attention_mask, self.hidden, max_new_tokens, self.others
        )
        return LogitsProcessorList([guidance])

    def score(self, texts: Sequence[str]) -> dict[str, list[float]]:
        """s_i of each text, by scorer; special tokens are added as the tokenizer adds them.

        Raises:
            InvalidGuidance: a text has fewer than two tokens.
            ScorerFault: a scorer failed.
        """
        scores: dict[str, list[float]] = {name: [] for name in self.params.scorers or {}}
        sequences = [list(self.tokenizer(text)["input_ids"]) for text in texts]
        if any(len(sequence) < 2 for sequence in sequences):
            raise InvalidGuidance("a text must have at least two tokens to be scored.")
        for first in range(0, len(sequences), SCORED_AT_ONCE):
            batch = sequences[first : first + SCORED_AT_ONCE]
            keys = [next_key() for _ in batch]
            self._know(batch)
            result = score_sequences(self.guide, self.params, batch, keys)
            self.guide.registry.forget(keys)
            if (error := result["error"]) is not None:
                raise ScorerFault(f"scorer '{error['scorer']}' {error['message']}.")
            for name, values in result["scores"].items():
                scores[name] += values
        return scores

    def score_answers(self, prompt: str | Turns, answers: Sequence[str]) -> list[dict[str, float]]:
        """s_i of whole answers to one prompt, each with the end token, by scorer.

        prompt: a text, or a conversation for the tokenizer's chat template.

        Raises:
            InvalidRequest: the prompt is empty, or too long with an answer, or a chat template
                refuses it.
            ScorerFault: a scorer failed.
        """
        conversation = None if isinstance(prompt, str) else turns(list(prompt))
        ids = self._prompt(prompt)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        tokens = [
            [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], *end]
            for answer in answers
        ]
        if len(ids) + max(map(len, tokens), default=0) > self.max_length:
            raise InvalidRequest(
                f"a prompt and its answer have more than {self.max_length} tokens; shorten them."
            )
        for name, scorer in self.guide.registry.scorers.items():
            reason = scorer.refusal(conversation) if conversation else None
            if reason is not None:
                raise unreadable(name, reason)
        scores: list[dict[str, float]] = []
        for first in range(0, len(tokens), SCORED_AT_ONCE):
            batch = tokens[first : first + SCORED_AT_ONCE]
            self._know([[*ids, *answer] for answer in batch], len(ids))
            scores += score_answers(self.guide, self.params, ids, batch, conversation)
        return scores

    def _prompt(self, prompt: str | Turns) -> list[int]:
        try:
            text = prompt if isinstance(prompt, str) else self._templated(prompt)
        except Exception as error:  # of the template, which is code of the tokenizer
            raise InvalidRequest(
                f"the base's chat template refuses a conversation ({type(error).__name__})."
            ) from None
        ids = list(self.tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"])
        if not ids:
            raise InvalidRequest("a prompt has no token; expected at least one.")
        return ids

    def _templated(self, prompt: Turns) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(prompt), tokenize=False, add_generation_prompt=True
            )
        )

    @torch.inference_mode()
    def _know(self, sequences: Sequence[Sequence[int]], start: int = 1) -> None:
        """Compute the states before the last token of each sequence, if a scorer reads them.

        start: tokens of their prompt.
        """
        if self.model is None:
            return
        for sequence in sequences:
            ids = torch.tensor([sequence[:-1]], device=self.model.device)
            states = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            self.guide.states.know(np.array(sequence[:-1], dtype=np.int64), states, start)
