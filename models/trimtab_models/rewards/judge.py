"""judge: a language model at an OpenAI-compatible endpoint rates each completion, 0 to 10."""

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
LONGEST_WAIT = 60.0  # seconds, even if Retry-After is longer
_ONE_NUMBER = re.compile(r"[^\d-]*(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?[^\d]*")


class _FailedAttempt(Exception):
    """This attempt failed; another may succeed. `wait`: the endpoint's Retry-After, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class JudgeReward:
    """R = the number that the judge replies, from 0 to 10.

    Args:
        url: the endpoint, including its /v1.
        model: the name of the judging model.
        template: a file with another prompt template, with {prompt} and {completion}.
        concurrency: maximum concurrent requests.
        timeout: seconds for one request.
        retries: further attempts after a 408, 409, 429 or 5xx, a time-out, a lost connection, or a
            reply that is not one number; waits as Retry-After says, up to `LONGEST_WAIT`.

    The key is read from TRIMTAB_JUDGE_KEY, else OPENAI_API_KEY, and is sent to the endpoint only.
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
            raise RewardError("a judge must be judge:http(s)://HOST/v1,model=NAME.")
        try:
            self.template = Path(template).read_text(encoding="utf-8") if template else TEMPLATE
            self.concurrency, self.retries = int(concurrency), int(retries)
            self.timeout = float(timeout)
        except (OSError, ValueError) as error:
            raise RewardError(f"judge: {error}") from None
        if "{prompt}" not in self.template or "{completion}" not in self.template:
            raise RewardError(f"judge: {template} must contain {{prompt}} and {{completion}}.")
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
            finally:  # after a final failure, cancel the other requests
                pool.shutdown(wait=False, cancel_futures=True)

    def _judge(self, http: httpx.Client, prompt: str, completion: str) -> float:
        # One pass over the template: "{completion}" inside a prompt is not replaced.
        filled = {"{prompt}": prompt, "{completion}": completion}
        parts = re.split(r"(\{prompt\}|\{completion\})", self.template)
        question = "".join(filled.get(part, part) for part in parts)
        for attempt in range(self.retries + 1):
            try:
                return self._ask(http, question)
            except _FailedAttempt as failure:
                if attempt == self.retries:
                    raise RewardError(
                        f"the judge at {self.url} failed {attempt + 1} time(s); the last error: "
                        f"{failure}."
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
            raise _FailedAttempt(type(error).__name__) from None
        status = answer.status_code
        if status in (408, 409, 429) or status >= 500:
            raise _FailedAttempt(
                f"HTTP status {status}", _seconds(answer.headers.get("retry-after"))
            )
        if status != 200:
            raise RewardError(f"the judge at {self.url} refused: HTTP status {status}.")
        try:
            reply = str(answer.json()["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            raise _FailedAttempt("its answer was not a chat completion in JSON") from None
        match = _ONE_NUMBER.fullmatch(reply.strip())
        if not match or not 0 <= float(match[1]) <= 10:
            raise _FailedAttempt("its reply was not one number from 0 to 10")
        return float(match[1])


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
