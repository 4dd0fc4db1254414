import instructor
from openai import OpenAI
from probe import KEY, PROMPT, URL, extra, run
from pydantic import BaseModel, Field


class Review(BaseModel):
    review: str = Field(max_length=100)


client = instructor.from_openai(
    OpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=instructor.Mode.JSON_SCHEMA
)


def ask(model, guidance, stream):
    request = {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0,
        "max_tokens": 200,
        "max_retries": 0,
        **extra(guidance),
    }
    if not stream:
        review, answer = client.create_with_completion(response_model=Review, **request)
        return review.review, getattr(answer.choices[0], "guidance", None)
    *_, last = client.create_partial(response_model=Review, **request)
    return last.review, None  # a partial model is all that it shows


run(ask)
