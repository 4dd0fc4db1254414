from langchain_openai import ChatOpenAI
from probe import KEY, PROMPT, TOKENS, URL, extra, run


def ask(model, guidance, stream):
    chat = ChatOpenAI(
        base_url=f"{URL}/v1",
        api_key=KEY,
        model=model,
        temperature=0,
        max_tokens=TOKENS,
        **extra(guidance),
    )
    if not stream:
        answer = chat.invoke(PROMPT)
        return answer.content, answer.response_metadata["token_usage"].get("guidance")
    return "".join(chunk.content for chunk in chat.stream(PROMPT)), None


run(ask)
