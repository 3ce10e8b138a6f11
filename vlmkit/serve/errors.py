"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vlmkit.errors import VlmkitError, first_line
from vlmkit.io.terminal import warn
from vlmkit.models.types import RequestError, UnsuitableModel
from vlmkit.serve.json import JsonResponse

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused with `status`: `message` says why, `param` names what of it is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JsonResponse(self.body(), self.status, headers=self.headers)


def explained(error: BaseException) -> ApiError:
    """What a client is told of `error`; what is a defect is also told on standard error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, RequestError):
        told = f"{error}: {error.remedy}" if error.remedy else str(error)
        return ApiError(400, told, code="cannot_answer", param="messages")
    if isinstance(error, UnsuitableModel):
        return ApiError(400, str(error), code="cannot_answer", param="model")
    if isinstance(error, VlmkitError):
        return ApiError(503, str(error), code="unavailable")
    warn(f"{type(error).__name__} {first_line(error) if isinstance(error, Exception) else ''}: a request failed")
    return ApiError(500, "the service failed to answer this request", code="internal_error")


async def on_error(_: Request, error: Exception) -> Response:
    """Starlette's handler of exceptions."""
    return explained(error).response()
