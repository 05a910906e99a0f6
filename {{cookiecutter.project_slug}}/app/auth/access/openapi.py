"""The OpenAPI description of keys: the operations that need one, and their refusals."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from fastapi.encoders import jsonable_encoder
from fastapi.utils import generate_unique_id

from app.auth.access.dependencies import get_caller
from app.auth.access.rule import PROBLEM_JSON
from app.constants import MISSING_KEY_STATUS

PROBLEM_SCHEMA: Final = {
    "title": "KeyProblem",
    "type": "object",
    "properties": {"detail": {"type": "string"}},
    "required": ["detail"],
}


def described(description: str) -> dict[str, Any]:
    """A response with PROBLEM_SCHEMA."""
    schema = {"$ref": "#/components/schemas/KeyProblem"}
    return {"description": description, "content": {PROBLEM_JSON: {"schema": schema}}}


_WAIT: Final = {"Retry-After": {"description": "In seconds", "schema": {"type": "integer"}}}
RESPONSES: Final[dict[str, dict[str, Any]]] = {
    "403": described("Missing scope"),
    f"{MISSING_KEY_STATUS}": described(
        "Invalid or missing API key" + " or scope" * (MISSING_KEY_STATUS == 403)
    ),
    "429": described("Too many requests") | {"headers": _WAIT},
    "503": described("The keys are out of reach") | {"headers": _WAIT},
}
"""The refusals of every guarded operation."""

# Tags for operations without tags.
_GUARDED: Final = {"name": "Guarded", "description": "For callers with a valid key."}
_PUBLIC: Final = {"name": "Public", "description": "For everybody."}
_MALFORMED: Final = {"400": {"description": "The request is malformed"}}  # sent by the server


def complete(
    document: Any, operations: Iterable[tuple[Any, bool]], policies: Any, *, bearer: bool = False
) -> None:
    """Add security, tags, refusals and headers. A unique function name becomes the id.

    `operations` are pairs: a route context, and whether it is guarded.
    """
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})[PROBLEM_SCHEMA["title"]] = PROBLEM_SCHEMA
    scheme = jsonable_encoder(get_caller.model, exclude_none=True)
    schemes, name = components.setdefault("securitySchemes", {}), get_caller.scheme_name
    schemes[name] = scheme
    if bearer:
        schemes["Bearer"] = {"type": "http", "scheme": "bearer"}
    described_operations = [
        (document["paths"][context.path_format][method.lower()], context, guarded)
        for context, guarded in operations
        for method in context.methods or ()
    ]
    told = {name: it for policy in policies for name, it in getattr(policy, "headers", {}).items()}
    names = Counter(context.name for _, context, _ in described_operations)
    for operation, context, guarded in described_operations:
        operation.setdefault("security", [{name: []}] if guarded else [])
        if bearer:  # either of the two
            scopes = [each[name] for each in operation["security"] if name in each]
            operation["security"] += [{"Bearer": each} for each in scopes]
        operation.setdefault("tags", [(_GUARDED if guarded else _PUBLIC)["name"]])
        refusals = RESPONSES if guarded else _MALFORMED
        operation["responses"] = {**jsonable_encoder(refusals), **operation["responses"]}
        contents = [answer.get("content", {}) for answer in operation["responses"].values()]
        if any("itemSchema" in each for content in contents for each in content.values()):
            document["openapi"] = "3.2.0"  # which has streams; FastAPI says 3.1.0
        for status, answer in operation["responses"].items():
            if guarded and told and (status == "429" or status.startswith("2")):
                answer["headers"] = {**told, **answer.get("headers", {})}
        if names[context.name] == 1 and operation["operationId"] == generate_unique_id(context):
            operation["operationId"] = context.name
    declared = document.get("tags", [])
    used = {tag for operation, _, _ in described_operations for tag in operation["tags"]}
    used -= {tag["name"] for tag in declared}
    document["tags"] = [tag for tag in (_GUARDED, _PUBLIC) if tag["name"] in used] + declared
