from anthropic import Anthropic
from probe import KEY, PROMPT, TOKENS, URL, run

client = Anthropic(base_url=URL, api_key=KEY)


def ask(model, guidance, stream):
    request = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": TOKENS,
        # Its newest versions have no argument for the temperature.
        "extra_body": {"temperature": 0, **({"guidance": guidance} if guidance else {})},
    }
    if not stream:
        answer = client.messages.create(**request)
        return answer.content[0].text, getattr(answer.usage, "guidance", None)
    text, kept = "", None
    for event in client.messages.create(**request, stream=True):
        if event.type == "content_block_delta":
            text += event.delta.text
        kept = getattr(getattr(event, "usage", None), "guidance", None) or kept
    return text, kept


run(ask)
