"""The description of the HTTP API (/openapi.json): ours, and guidance on the routes of vLLM."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from trimtab.params import GuidanceParams
from trimtab.search.params import ANY
from trimtab_server.presets.fit import FitRequest
from trimtab_server.protocol import GenerateRequest

PROMPT = {"messages": [{"role": "user", "content": "Write a review of the cafe."}]}
STEERED = {"scorers": {"sentiment": 1.0}, "beta": 4}
ANSWERED = {"max_tokens": 80, "seed": 1}
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "steered": {
        "summary": "Steered towards a scorer",
        "value": {**PROMPT, **STEERED, **ANSWERED},
    },
    "mixture": {
        "summary": "A signed mixture of scorers",
        "value": {
            **PROMPT,
            "scorers": {"formality": 1.0, "brevity": -0.5},
            "beta": 4,
            **ANSWERED,
        },
    },
    "budget": {
        "summary": "A KL budget instead of β",
        "value": {**PROMPT, "scorers": {"sentiment": 1.0}, "kl_budget": 2.0, **ANSWERED},
    },
    "paper": {
        "summary": "k, mass and tail of a paper",
        "value": {**PROMPT, **STEERED, "paper": "vas", **ANSWERED},
    },
    "trace": {
        "summary": "A stream with what guidance did at each token",
        "value": {**PROMPT, **STEERED, **ANSWERED, "stream": True, "trace": True},
    },
    "search": {
        "summary": "The best of 16 answers of the base",
        "value": {
            **PROMPT,
            "scorers": {"sentiment": 1.0},
            "beta": 0,
            **ANSWERED,
            "search": {"method": "best_of_n", "n": 16},
        },
    },
}
GUIDANCE_EXAMPLES = [
    STEERED,
    {"scorers": {"formality": 1.0, "brevity": -0.5}, "beta": 4},
    {"scorers": {"sentiment": 1.0}, "kl_budget": 2.0},
    {**STEERED, "paper": "vas"},
]
FIT_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "comparisons": {
        "summary": "Weights from comparisons of answers",
        "value": {
            "comparisons": [
                {**PROMPT, "chosen": "A good cafe.", "rejected": "I did not like the cafe."},
                {**PROMPT, "answers": ["It is fine.", "Good."], "choice": "tie"},
            ],
            "scorers": ["sentiment", "brevity"],
            "kl_budget": 2.0,
        },
    },
}
ANSWER: Mapping[str, Any] = {
    "type": "object",
    "description": "With stream, each event has the newest part of the choices in this shape.",
    "required": ["id", "model", "choices"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "text", "token_ids"],
                "properties": {
                    "index": {"type": "integer"},
                    "text": {"type": "string"},
                    "token_ids": {"type": "array", "items": {"type": "integer"}},
                    "finish_reason": {"type": ["string", "null"]},
                    "guidance": {
                        "type": ["object", "null"],
                        "description": "kl and kl_tail in nats, scores of the whole answer, steps, "
                        "error; with trace, each step.",
                    },
                    "trace": {
                        "type": ["array", "null"],
                        "items": {"type": "object"},
                        "description": "With stream and trace: the steps of these tokens.",
                    },
                },
            },
        },
        "usage": {"type": "object"},
    },
}
GUIDED = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/invocations",
    "/inference/v1/generate",
)
"""Routes with a `guidance` object."""
TAG = "Trimtab"
"""Of our own routes, which the description lists first."""
SCHEMAS = "#/components/schemas/"
TEMPLATE = SCHEMAS + "{model}"


def describe(app: FastAPI) -> None:
    """Let an application's /openapi.json say what it serves."""
    app.title, app.version = "Trimtab", version("trimtab")
    app.description = (
        "Steers a frozen language model at decode time with small scorers: "
        "π(v | prefix) ∝ π0(v | prefix) · exp(β · Σᵢ wᵢ · sᵢ(prefix + v))."
    )
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        """The description, made once."""
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(description: dict[str, Any]) -> dict[str, Any]:
    """A description with our bodies, and `guidance` in those of other routes."""
    schemas = description.setdefault("components", {}).setdefault("schemas", {})
    guidance = _schema(GuidanceParams, schemas)
    search = ANY.json_schema(ref_template=TEMPLATE)
    schemas.update(search.pop("$defs", {}))
    request = _schema(GenerateRequest, schemas)
    name = "TrimtabGenerateRequest" if "GenerateRequest" in schemas else "GenerateRequest"
    schemas["SearchParams"] = search
    schemas["GuidanceParams"] = {**guidance, "examples": GUIDANCE_EXAMPLES}
    schemas[name] = {
        **request,
        "description": "Exactly one of prompt, prompt_token_ids and messages; guidance is flat.",
        "properties": {
            **request["properties"],
            **guidance["properties"],
            "search": {"$ref": f"{SCHEMAS}SearchParams"},
        },
    }
    paths = description["paths"]
    generate = paths["/generate"]["post"]
    _set_body(generate, name, examples=EXAMPLES)
    schemas["GuidedAnswer"] = ANSWER
    answers = {"application/json": {"schema": {"$ref": f"{SCHEMAS}GuidedAnswer"}}}
    generate["responses"]["200"]["content"] = answers
    schemas["FitRequest"] = _schema(FitRequest, schemas)
    _set_body(paths["/v1/presets/{name}/fit"]["post"], "FitRequest", examples=FIT_EXAMPLES)
    for path in GUIDED:
        if path in paths:
            _guide(paths[path]["post"], schemas)
    for title, schema in schemas.items():
        if "__" in title:  # one of several classes of a name, whose titles generators would confuse
            schema["title"] = title
    first = [path for path, routes in paths.items() if _is_ours(routes)]
    description["paths"] = {path: paths[path] for path in dict.fromkeys([*first, *paths])}
    description["tags"] = [{"name": TAG, "description": "Guided answers, scorers, readiness."}]
    return description


def _is_ours(routes: Mapping[str, Any]) -> bool:
    return any(TAG in route.get("tags", ()) for route in routes.values())


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    """A model's schema; what it refers to is added to `schemas`."""
    schema = model.model_json_schema(ref_template=TEMPLATE)
    schemas.update(schema.pop("$defs", {}))
    return schema


def _set_body(operation: dict[str, Any], name: str, **more: Any) -> None:
    content = {"application/json": {"schema": {"$ref": SCHEMAS + name}, **more}}
    operation["requestBody"] = {"required": True, "content": content}


def _guide(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Add `guidance` to the body of a route of the OpenAI kind."""
    field = {"$ref": f"{SCHEMAS}GuidanceParams"}
    body = operation.get("requestBody")
    if body is None:  # read without a model of its fields
        schemas["GuidedRequest"] = {
            "type": "object",
            "description": "The fields of OpenAI's route, and guidance.",
            "properties": {"guidance": field},
            "additionalProperties": True,
        }
        _set_body(operation, "GuidedRequest")
        return
    for schema in _referred(body["content"]["application/json"]["schema"], schemas):
        schema.setdefault("properties", {})["guidance"] = field


def _referred(schema: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """The components that a body's schema may be."""
    options = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    names = [option["$ref"].removeprefix(SCHEMAS) for option in options if "$ref" in option]
    return [schemas[name] for name in names]
