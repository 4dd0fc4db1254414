"""judge: a language model behind an OpenAI-compatible endpoint rates each completion, 0 to 10."""

import os
import random
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from trimtab_models.rewards.base import Record, RewardError, texts

TEMPLATE = """You grade answers. Below is what somebody asked, and an answer to it.

Asked:
{prompt}

Answer:
{completion}

How good is the answer: how helpful, correct and well written? Reply with one number from 0 \
(useless) to 10 (could not be better) and nothing else."""
LONGEST_WAIT = 60.0  # seconds, whatever Retry-After asks for
_ONE_NUMBER = re.compile(r"[^\d-]*(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?[^\d]*")


class _Again(Exception):
    """This attempt failed; the next may not. `wait` is what the endpoint asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class JudgeReward:
    """R = the number that the judge replies, from 0 to 10.

    Args:
        url: the endpoint up to and with its /v1.
        model: which model judges.
        template: a file to ask with instead; it holds {prompt} and {completion}.
        concurrency: requests at a time.
        timeout: seconds for one request.
        retries: further attempts after a 408, 409, 429 or 5xx, a time-out, a lost connection, or a
            reply that is not one number; Retry-After is honoured, up to `LONGEST_WAIT`.

    The key comes from TRIMTAB_JUDGE_KEY, else OPENAI_API_KEY, and goes nowhere but to the endpoint.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        template: str | None = None,
        concurrency: int | str = 8,
        timeout: float | str = 60.0,
        retries: int | str = 5,
    ) -> None:
        if not url.startswith(("http://", "https://")) or not model:
            raise RewardError("a judge reads judge:http(s)://HOST/v1,model=NAME.")
        try:
            self.template = Path(template).read_text(encoding="utf-8") if template else TEMPLATE
            self.concurrency, self.retries = int(concurrency), int(retries)
            self.timeout = float(timeout)
        except (OSError, ValueError) as error:
            raise RewardError(f"judge: {error}") from None
        if "{prompt}" not in self.template or "{completion}" not in self.template:
            raise RewardError(f"judge: {template} must hold {{prompt}} and {{completion}}.")
        if self.concurrency < 1 or self.retries < 0 or not self.timeout > 0:
            raise RewardError(
                "judge: concurrency and timeout must be positive, retries not below 0."
            )
        self.url, self.model = url.rstrip("/") + "/chat/completions", model

    def __call__(self, records: Sequence[Record]) -> list[float]:
        """See trimtab_models.rewards."""
        key = os.environ.get("TRIMTAB_JUDGE_KEY") or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with (
            httpx.Client(headers=headers, timeout=self.timeout) as http,
            ThreadPoolExecutor(self.concurrency) as pool,
        ):
            answers = [pool.submit(self._judge, http, *texts(record)) for record in records]
            try:
                return [answer.result() for answer in answers]
            finally:  # once one has failed for good, the others need not be asked
                pool.shutdown(wait=False, cancel_futures=True)

    def _judge(self, http: httpx.Client, prompt: str, completion: str) -> float:
        # One pass over the template: a prompt that says {completion} is not filled in.
        filled = {"{prompt}": prompt, "{completion}": completion}
        parts = re.split(r"(\{prompt\}|\{completion\})", self.template)
        question = "".join(filled.get(part, part) for part in parts)
        for attempt in range(self.retries + 1):
            try:
                return self._ask(http, question)
            except _Again as failure:
                if attempt == self.retries:
                    raise RewardError(
                        f"the judge at {self.url} failed {attempt + 1} time(s), at last: {failure}."
                    ) from None
                backoff = 0.5 * 2**attempt * random.uniform(0.75, 1.25)
                time.sleep(min(LONGEST_WAIT, backoff if failure.wait is None else failure.wait))
        raise AssertionError("unreachable")

    def _ask(self, http: httpx.Client, question: str) -> float:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
        }
        try:
            answer = http.post(self.url, json=body)
        except httpx.TransportError as error:
            raise _Again(type(error).__name__) from None
        status = answer.status_code
        if status in (408, 409, 429) or status >= 500:
            raise _Again(f"HTTP status {status}", _seconds(answer.headers.get("retry-after")))
        if status != 200:
            raise RewardError(f"the judge at {self.url} refuses: HTTP status {status}.")
        try:
            reply = str(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise _Again("its answer was not a chat completion in JSON") from None
        found = _ONE_NUMBER.fullmatch(reply.strip())
        if not found or not 0 <= float(found[1]) <= 10:
            raise _Again("its reply was not one number from 0 to 10")
        return float(found[1])


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After, in seconds or as a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
