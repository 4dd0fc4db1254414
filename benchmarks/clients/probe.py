"""What the probes of the Python clients share; it needs the standard library alone.

A probe is run in its client's environment with a list of cells in JSON, and prints a line of JSON
for each: the text that the client shows, and the record if the client kept it.
"""

import json
import os
import sys

URL = os.environ["TRIMTAB_URL"]  # without /v1
KEY = os.environ["TRIMTAB_KEY"]
PROMPT = "Write a review of the cafe."
TOKENS = 24


def run(ask):
    """ask(model, guidance or None, stream) → the answer's text, and what was kept of its record."""
    for cell in json.loads(sys.argv[1]):
        try:
            text, kept = ask(cell["model"], cell["guidance"], cell["stream"])
            line = {"text": text, "kept": kept}
        except Exception as error:
            line = {"error": f"{type(error).__name__}: {error}"}
        print("CELL " + json.dumps({"name": cell["name"], **line}), flush=True)


def extra(guidance):
    """The keyword arguments with the guidance, for clients with OpenAI's `extra_body`."""
    return {} if guidance is None else {"extra_body": {"guidance": guidance}}
