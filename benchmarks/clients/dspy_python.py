import dspy
from probe import KEY, PROMPT, TOKENS, URL, extra, run


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
    if stream:
        raise NotImplementedError("DSPy streams the fields of a program, not a model's answer")
    [text] = lm(PROMPT)
    usage = lm.history[-1]["usage"]
    return text, usage.get("guidance")


run(ask)
