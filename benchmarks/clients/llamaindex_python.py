from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from probe import KEY, PROMPT, TOKENS, URL, extra, run


def ask(model, guidance, stream):
    llm = OpenAILike(
        model=model,
        api_base=f"{URL}/v1",
        api_key=KEY,
        is_chat_model=True,
        temperature=0,
        max_tokens=TOKENS,
        additional_kwargs=extra(guidance),
    )
    messages = [ChatMessage(role="user", content=PROMPT)]
    if not stream:
        answer = llm.chat(messages)
        return answer.message.content, getattr(answer.raw.choices[0], "guidance", None)
    text, kept = "", None
    for chunk in llm.stream_chat(messages):
        text += chunk.delta or ""
        for choice in chunk.raw.choices:
            kept = getattr(choice, "guidance", None) or kept
    return text, kept


run(ask)
