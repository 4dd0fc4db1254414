"""classifier: any transformers sequence classifier, in batches of texts of like length."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trimtab_models.rewards.base import Record, RewardError, texts


class ClassifierReward:
    """R = the logit of a network with one output, else log p(label | prompt, completion).

    Args:
        path: a directory or hub name that AutoModelForSequenceClassification loads.
        label: name or number of the label, for a network with several outputs.
        form: "chat" renders the conversation by the classifier's own template (the default if it
            has one); "pair" gives it prompt and completion as a pair of texts.
        batch_size: texts a forward pass.
        device: where it runs, such as cuda:1; the engine may fill the first GPU.

    A text longer than the network reads loses its beginning, so that its end is judged; of a pair,
    the longer of the two texts gives way first.
    """

    def __init__(
        self,
        path: str,
        label: str | None = None,
        form: Literal["chat", "pair"] | None = None,
        batch_size: int | str = 32,
        device: str = "cpu",
    ) -> None:
        try:
            self.batch_size, self.device = int(batch_size), torch.device(device)
            self.tokenizer = AutoTokenizer.from_pretrained(path, truncation_side="left")
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(path)
        except (OSError, ValueError, RuntimeError) as error:
            raise RewardError(f"the classifier {path} cannot be loaded: {_short(error)}") from error
        self.model.to(self.device).eval()
        self.label = self._number(label)
        self.form = form or ("chat" if self.tokenizer.chat_template else "pair")
        if self.form not in ("chat", "pair") or self.batch_size < 1:
            raise RewardError("classifier: form must be chat or pair, batch_size at least 1.")

    def _number(self, label: str | None) -> int | None:
        count = self.model.config.num_labels
        names = {str(name): i for name, i in self.model.config.label2id.items()}
        names |= {str(i): i for i in range(count)}
        if label is None and count == 1:
            return None
        if label not in names or count == 1:
            raise RewardError(
                f"the classifier has {count} label(s), {', '.join(list(names)[:count])}: "
                + ("leave label= out." if count == 1 else "name one by label=NAME.")
            )
        return names[label]

    def __call__(self, records: Sequence[Record]) -> list[float]:
        """See trimtab_models.rewards."""
        encoded = [self._ids(record) for record in records]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        rewards = [0.0] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            values = self._forward([encoded[i] for i in chosen])
            for i, value in zip(chosen, values.tolist(), strict=True):
                rewards[i] = value
        return rewards

    def _ids(self, record: Record) -> dict[str, list[int]]:
        most = min(
            getattr(self.model.config, "max_position_embeddings", None) or 2**31,
            self.tokenizer.model_max_length,
        )
        if self.form == "pair":
            return dict(self.tokenizer(*texts(record), truncation=True, max_length=most))
        prompt, completion = record["prompt"], record["completion"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        chat = self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        return dict(
            self.tokenizer(chat, add_special_tokens=False, truncation=True, max_length=most)
        )

    @torch.inference_mode()
    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> Tensor:
        """[rows] float32."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = dict.fromkeys(rows[0], 0)
        fill["input_ids"] = pad = self._pad(rows)
        batch = {
            name: torch.tensor(
                [row[name] + [fill[name]] * (width - len(row[name])) for row in rows],
                device=self.device,
            )
            for name in rows[0]
        }
        config, own = self.model.config.get_text_config(), self.model.config.pad_token_id
        config.pad_token_id = pad
        try:
            logits = self.model(**batch).logits.float()  # [rows, labels]
        finally:
            config.pad_token_id = own
        return logits[:, 0] if self.label is None else logits.log_softmax(-1)[:, self.label]

    def _pad(self, rows: Sequence[dict[str, list[int]]]) -> int:
        """What fills a row. Decoders find a row's end by it: with none of their own, they get a
        token that no row holds, so that the end is the last token, as it is without padding.
        """
        if (own := self.model.config.pad_token_id) is not None:
            return int(own)
        used = {token for row in rows for token in row["input_ids"]}
        return next(token for token in range(self.model.config.vocab_size) if token not in used)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
