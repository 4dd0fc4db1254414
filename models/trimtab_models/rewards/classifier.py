"""classifier: any transformers sequence classifier, in batches of texts of similar length."""

from collections.abc import Sequence
from typing import Literal

import torch

from trimtab_models import classify
from trimtab_models.data.chats import render
from trimtab_models.data.faults import Fault
from trimtab_models.rewards.base import Record, RewardError, spoken, texts


class ClassifierReward:
    """R = the score of trimtab_models.classify: a single logit, else log p(label | text).

    Args:
        path: a directory or hub name that AutoModelForSequenceClassification loads.
        label: name or number of the label, for a network with several outputs.
        form: "chat" renders the conversation with the classifier's own template (the default if it
            has one); "pair" passes prompt and completion as a pair of texts.
        batch_size: texts in a forward pass.
        device: the device to run on, such as cuda:1; the engine may fill the first GPU.

    A text that is too long for the network is truncated at its beginning; of a pair, the longer
    text is truncated first.
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
            torch.empty(1, device=self.device)
        except (ValueError, RuntimeError, AssertionError, NotImplementedError):
            raise RewardError(
                f"classifier: batch_size={batch_size} must be a whole number, and device={device} "
                "a device that torch has here, such as cpu or cuda:1."
            ) from None
        try:
            self.classifier = classify.load(path, label)
        except (OSError, ValueError) as error:
            raise RewardError(f"the classifier {path} cannot be loaded: {error}") from error
        self.classifier.model.to(self.device)
        self.tokenizer = self.classifier.tokenizer
        self.form = form or ("chat" if self.tokenizer.chat_template else "pair")
        if self.form not in ("chat", "pair") or self.batch_size < 1:
            raise RewardError("classifier: form must be chat or pair, batch_size at least 1.")
        if self.form == "chat" and not self.tokenizer.chat_template:
            raise RewardError(
                "classifier: form=chat needs a chat template, and its tokenizer has none; set "
                "form=pair."
            )

    def __call__(self, records: Sequence[Record]) -> list[float]:
        """See trimtab_models.rewards."""
        encoded = [self._ids(record) for record in records]
        scores: list[float] = self.classifier.score(encoded, self.batch_size).tolist()
        return scores

    def _ids(self, record: Record) -> dict[str, list[int]]:
        limit = self.classifier.window
        if self.form == "pair":
            return dict(self.tokenizer(*texts(record), truncation=True, max_length=limit))
        try:
            chat = render(self.tokenizer, {}, _chat(record))
        except Fault as fault:
            raise RewardError(f"the classifier: {fault}.") from None
        return dict(
            self.tokenizer(chat, add_special_tokens=False, truncation=True, max_length=limit)
        )


def _chat(record: Record) -> list[dict[str, str]]:
    """The whole conversation; a completion may continue the assistant's last turn."""
    prompt, completion = record["prompt"], record["completion"]
    turns = [("user", prompt)] if isinstance(prompt, str) else spoken(record, "prompt")
    if not isinstance(completion, str):
        turns += spoken(record, "completion")
    elif turns[-1][0] == "assistant":
        turns[-1] = ("assistant", turns[-1][1] + completion)
    else:
        turns.append(("assistant", completion))
    return [{"role": role, "content": content} for role, content in turns]
