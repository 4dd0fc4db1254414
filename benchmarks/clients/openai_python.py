from openai import OpenAI
from probe import KEY, PROMPT, TOKENS, URL, extra, run

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)


def ask(model, guidance, stream):
    request = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": TOKENS,
        **extra(guidance),
    }
    if not stream:
        answer = client.chat.completions.create(**request)
        return answer.choices[0].message.content, getattr(answer.choices[0], "guidance", None)
    text, kept = "", None
    for event in client.chat.completions.create(**request, stream=True):
        for choice in event.choices:
            text += choice.delta.content or ""
            kept = getattr(choice, "guidance", None) or kept
    return text, kept


run(ask)
