import asyncio

import dspy
from probe import KEY, PROMPT, TOKENS, URL, extra, run


class Plain(dspy.Adapter):
    """Sends the question alone: the demo does not follow DSPy's own formats."""

    def format(self, signature, demos, inputs):
        return [{"role": "user", "content": inputs["question"]}]

    def parse(self, signature, completion):
        return {"answer": completion}


def ask(model, guidance, stream):
    lm = dspy.LM(
        f"openai/{model}",
        api_base=f"{URL}/v1",
        api_key=KEY,
        temperature=0,
        max_tokens=TOKENS,
        cache=False,
        **extra(guidance),
    )
    if not stream:
        [text] = lm(PROMPT)
    else:
        text = asyncio.run(_streamed(lm))
    return text, (lm.history[-1]["usage"] or {}).get("guidance") if lm.history else None


async def _streamed(lm):
    text = ""
    with dspy.context(lm=lm, adapter=Plain()):
        async for part in dspy.streamify(dspy.Predict("question -> answer"))(question=PROMPT):
            if not isinstance(part, dspy.Prediction):
                text += part.choices[0].delta.content or ""
    return text


run(ask)
