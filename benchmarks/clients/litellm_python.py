import litellm
from probe import KEY, PROMPT, TOKENS, URL, extra, run


def ask(model, guidance, stream):
    request = {
        "model": f"openai/{model}",
        "api_base": f"{URL}/v1",
        "api_key": KEY,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": TOKENS,
        **extra(guidance),
    }
    if not stream:
        answer = litellm.completion(**request)
        return answer.choices[0].message.content, _kept(answer)
    text, kept = "", None
    options = {"include_usage": True}
    for chunk in litellm.completion(**request, stream=True, stream_options=options):
        for choice in chunk.choices:
            text += choice.delta.content or ""
        kept = _kept(chunk) or kept
    return text, kept


def _kept(answer):
    choices = [getattr(choice, "guidance", None) for choice in answer.choices]
    fields = [getattr(choice, "provider_specific_fields", None) or {} for choice in answer.choices]
    usage = getattr(getattr(answer, "usage", None), "guidance", None)
    return next(
        (one for one in (usage, *choices, *(f.get("guidance") for f in fields)) if one), None
    )


run(ask)
