"""The application: the tables of operations, and what every request passes before them."""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vlmkit.serve import chat, classify, embeddings, page, search, status
from vlmkit.serve.errors import on_error
from vlmkit.serve.json import JsonResponse
from vlmkit.serve.limits import Limits
from vlmkit.serve.openapi import document
from vlmkit.serve.operations import Operation
from vlmkit.serve.security import Guard
from vlmkit.serve.service import Service


async def openapi(service: Service, _: Any) -> Response:
    return JsonResponse(document(OPERATIONS, secured=service.settings.token is not None))


OPERATIONS = [
    *status.OPERATIONS,
    Operation("GET", "/openapi.json", openapi, "This document."),
    *chat.OPERATIONS,
    *embeddings.OPERATIONS,
    *search.OPERATIONS,
    *classify.OPERATIONS,
]


def application(service: Service) -> ASGIApp:
    """The ASGI application of `service`."""
    routes = [*(_route(service, operation) for operation in OPERATIONS), *page.routes(service)]
    service.metrics.paths = frozenset(route.path for route in routes)
    handlers = {HTTPException: on_error, Exception: on_error}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    if service.settings.origins:
        origins, headers = list(service.settings.origins), ["Authorization", "Content-Type"]
        app = CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=headers)
    return Guard(Limits(app, service.settings, service.metrics), service.settings)


def _route(service: Service, operation: Operation) -> Route:
    async def answer(request: Request) -> Response:
        return await operation.answer(service, request)

    return Route(operation.path, answer, methods=[operation.method])
