"""Operations: what the service does at a path, with the JSON Schema of its request, from which OpenAPI is made."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from vlmkit.errors import reason_of
from vlmkit.io.records import loads
from vlmkit.serve.errors import ApiError
from vlmkit.serve.service import Service

Schema = dict[str, Any]
MAX_VALUES = 100_000  # in the body of a request, with the commas of its texts
SHORT = 1 << 16  # bytes
STRING: Schema = {"type": "string"}
STRINGS: Schema = {"anyOf": [STRING, {"type": "array", "items": STRING, "maxItems": 256}]}
MODEL: Schema = {"type": ["string", "null"], "description": "A name of /v1/models; by default the first that can."}
PICTURE: Schema = {"type": "string", "description": "A data URI, an http(s) URL, base64, or the id of a record."}


def object_of(required: list[str] | None = None, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


@dataclass(frozen=True)
class Operation:
    """`handler(service, body)` answers a request whose body is JSON of the `schema`; without one there is no body."""

    method: str
    path: str
    handler: Callable[[Service, Any], Awaitable[Response]]
    summary: str
    schema: Schema | None = None
    media_type: str = "application/json"

    async def answer(self, service: Service, request: Request) -> Response:
        if self.schema is None:
            return await self.handler(service, None)
        data = await request.body()
        is_short = len(data) <= SHORT  # a long one must not keep others waiting
        body = self._body(data) if is_short else await service.pictures.in_thread(lambda: self._body(data))
        return await self.handler(service, body)

    def _body(self, data: bytes) -> Any:
        """Raises ApiError."""
        if data.count(b",") > MAX_VALUES:
            what = f"the body holds more than {MAX_VALUES} values: send several requests"
            raise ApiError(400, what, code="too_many_values")
        try:
            body = loads(data)
        except ValueError as error:
            raise ApiError(400, f"the body is {error}", code="invalid_json") from None
        for wrong in self._validator.iter_errors(body):
            path = ".".join(str(part) for part in wrong.absolute_path)
            what = f"{path or 'the body'}: {reason_of(wrong.message, 200)}"
            raise ApiError(400, what, code="invalid_value", param=path or None)
        return body

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.schema)


def unused(body: dict[str, Any], schema: Schema) -> list[str]:
    """A line for each setting of `body` that this service does not know, and that asks for something."""
    return [
        f"{name[:100]} is not used here"
        for name, value in body.items()
        if name not in schema["properties"] and value not in (None, 0, False, "", [], {})
    ]


def warned(reply: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """`reply` with what the client should know of it."""
    return reply | {"warnings": warnings} if warnings else reply
