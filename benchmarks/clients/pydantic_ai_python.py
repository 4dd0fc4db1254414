import asyncio

from probe import KEY, PROMPT, TOKENS, URL, extra, run
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def ask(model, guidance, stream):
    provider = OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY)
    settings = {"temperature": 0, "max_tokens": TOKENS, **extra(guidance)}
    agent = Agent(OpenAIChatModel(model, provider=provider), model_settings=settings)
    return asyncio.run(_streamed(agent) if stream else _whole(agent))


async def _whole(agent):
    result = await agent.run(PROMPT)
    return result.output, _kept(result)


async def _streamed(agent):
    async with agent.run_stream(PROMPT) as result:
        text = "".join([piece async for piece in result.stream_text(delta=True)])
        return text, _kept(result)


def _kept(result):
    details = result.usage.details or {}
    return {k: v for k, v in details.items() if k.startswith("guidance")} or None


run(ask)
