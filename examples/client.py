"""A client of a running server (`make serve`): POST /generate, and the chat route of OpenAI.

python examples/client.py [URL [API_KEY]]
"""

import sys

import httpx
from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
key = sys.argv[2] if len(sys.argv) > 2 else "none"

# 1. POST /generate: guidance fields beside the sampling fields.
body = {
    "messages": [{"role": "user", "content": "Write a review of the cafe."}],
    "scorers": {"sentiment": 1.0, "brevity": 0.5},
    "beta": 4,
    "max_tokens": 60,
    "seed": 1,
}
with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
    answer = http.post("/generate", json=body)
    answer.raise_for_status()
    [choice] = answer.json()["choices"]
    print(choice["text"], choice["guidance"]["scores"], sep="\n")

# 2. The usual client: guidance goes into extra_body; each choice has a record when it ends.
client = OpenAI(base_url=f"{url}/v1", api_key=key)
stream = client.chat.completions.create(
    model="demo",
    messages=[{"role": "user", "content": "Write a review of the hotel."}],
    max_tokens=60,
    stream=True,
    extra_body={"guidance": {"scorers": {"sentiment": -1.0}, "beta": 4}},
)
for chunk in stream:
    for part in chunk.choices:
        print(part.delta.content or "", end="", flush=True)
        if part.finish_reason is not None:
            print("\n", part.guidance["scores"])
