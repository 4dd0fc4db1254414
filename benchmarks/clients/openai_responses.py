from openai import OpenAI
from probe import KEY, PROMPT, TOKENS, URL, extra, run

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)


def ask(model, guidance, stream):
    request = {
        "model": model,
        "input": PROMPT,
        "temperature": 0,
        "max_output_tokens": TOKENS,
        **extra(guidance),
    }
    if not stream:
        answer = client.responses.create(**request)
        return answer.output_text, getattr(answer, "guidance", None)
    text, kept = "", None
    for event in client.responses.create(**request, stream=True):
        if event.type == "response.output_text.delta":
            text += event.delta
        kept = getattr(event, "guidance", None) or kept
    return text, kept


run(ask)
