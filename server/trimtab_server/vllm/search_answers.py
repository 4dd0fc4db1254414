"""How the answer of a search is latest: whole, or in the pieces that it has committed to."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm.exceptions import VLLMError

from trimtab.errors import TrimtabError
from trimtab.search import Commit, Result
from trimtab_server.events import DONE, event


@dataclass
class SearchRenderer:
    """Renders a search's commits and result for one request."""

    head: Mapping[str, str]  # what every answer and every event begins with
    tokenizer: Any
    method: str
    prompt: list[int]
    tokens: int = 0  # of the answer, shown so far
    text: str = ""

    def piece(self, token_ids: list[int], result: Result | None = None) -> dict[str, Any]:
        """A choice's next piece, up to `token_ids`; all that is left of it with a result."""
        shown = self._decode(token_ids)
        if result is None and shown.endswith("\ufffd"):  # a character that is not whole yet
            shown = self.text
        piece: dict[str, Any] = {
            "index": 0,
            "text": shown[len(self.text) :],
            "token_ids": token_ids[self.tokens :],
            "finish_reason": None,
        }
        self.tokens, self.text = len(token_ids), shown
        if result is not None:
            piece["finish_reason"] = result.finish_reason
            piece["guidance"] = {
                "kl": result.kl,
                "scores": result.scores,
                "steps": len(result.token_ids),
                "error": None,
            }
            piece["search"] = {"method": self.method, "value": result.value, **result.facts}
        return piece

    def usage(self, result: Result) -> dict[str, Any]:
        """Token counts: of the answer, and of all that was spent on it."""
        spent = asdict(result.usage)
        prompt, completion = spent.pop("prompt_tokens"), len(result.token_ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "search": spent,
        }

    def _decode(self, token_ids: list[int]) -> str:
        # Some tokenizers join tokens differently at the beginning of a text.
        before = self.tokenizer.decode(self.prompt[-6:], skip_special_tokens=True)
        ids = [*self.prompt[-6:], *token_ids]
        whole: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return whole[len(before) :]

    def answer(self, result: Result) -> dict[str, Any]:
        """The whole answer."""
        choice = self.piece(result.token_ids, result)
        return {**self.head, "choices": [choice], "usage": self.usage(result)}

    async def events(
        self, first: Commit | Result, rest: AsyncGenerator[Commit | Result, None]
    ) -> AsyncIterator[str]:
        """The same as server-sent events."""
        latest = first
        try:
            while True:
                result = latest if isinstance(latest, Result) else None
                piece = self.piece(list(latest.token_ids), result)
                if result is not None or piece["token_ids"]:
                    yield event({**self.head, "choices": [piece]})
                if result is not None:
                    yield event({**self.head, "choices": [], "usage": self.usage(result)})
                    break
                latest = await anext(rest)
        except TrimtabError as error:
            yield event(error.body())
        except VLLMError:
            yield event(TrimtabError("the engine stopped while it was searching.").body())
        finally:
            await rest.aclose()
        yield DONE
