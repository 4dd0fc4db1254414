"""Engine prompts from text, token ids or messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from trimtab.errors import InvalidRequest


async def text(renderer: Any, prompt: str | Sequence[int]) -> Any:
    """A prompt as text or as token ids.

    Raises:
        InvalidRequest: vLLM refuses it (too long, ids out of the vocabulary).
    """
    # With max_tokens=1, only the prompt's own length is checked.
    request = CompletionRequest(prompt=prompt, max_tokens=1)
    return _rendered(await renderer.render_completion(request), "prompt")[0]


async def messages(renderer: Any, turns: Sequence[Mapping[str, str]]) -> Any:
    """A conversation, rendered with the model's chat template.

    Raises:
        InvalidRequest: vLLM or the template refuses it.
    """
    request = ChatCompletionRequest(messages=turns, max_tokens=1)
    return _rendered(await renderer.render_chat(request), "messages")[1][0]


def _rendered(answer: Any, param: str) -> Any:
    if hasattr(answer, "error"):
        raise InvalidRequest(answer.error.message[:500], param=param)
    return answer
