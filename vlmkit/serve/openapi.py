"""The OpenAPI document, made of the operations."""

from collections.abc import Iterable
from typing import Any

from vlmkit import __version__
from vlmkit.serve.operations import Operation, Schema, object_of

NULLABLE: Schema = {"type": ["string", "null"]}
ERROR = object_of(
    ["error"],
    error=object_of(
        ["message", "type"], message={"type": "string"}, type={"type": "string"}, param=NULLABLE, code=NULLABLE
    ),
)
STATUSES = {
    400: "The request is wrong.",
    401: "The token is missing or wrong.",
    403: "The page that sends this is of another origin.",
    404: "There is no such model or index.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    421: "The header Host names another service.",
    422: "The answer does not match the schema.",
    429: "Too many requests wait; see Retry-After.",
    500: "The service failed.",
    503: "The model or the index cannot be opened.",
    504: "The answer took too long.",
}


def document(operations: Iterable[Operation], secured: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of `operations`; `secured` ones need a token."""
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _described(one)
    components: dict[str, Any] = {"schemas": {"Error": ERROR}}
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "vlmkit", "version": __version__, "description": "Pictures and language over HTTP."},
        "paths": paths,
        "components": components,
    }
    if secured:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
    return made


def _described(one: Operation) -> dict[str, Any]:
    kinds = {one.media_type: {"schema": {"type": "string"} if one.media_type.startswith("text/") else {}}}
    if one.schema and "stream" in one.schema["properties"]:
        kinds["text/event-stream"] = {"schema": {"type": "string"}}
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses = {str(status): {"description": what, "content": failed} for status, what in STATUSES.items()}
    found: dict[str, Any] = {
        "operationId": one.handler.__name__,
        "summary": one.summary,
        "responses": {"200": {"description": "The answer.", "content": kinds}} | responses,
    }
    if one.schema:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": one.schema}}}
    return found
