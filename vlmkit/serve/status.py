"""/health, /metrics, /v1/models: how the service is."""

import time
from typing import Any

from starlette.responses import Response

from vlmkit import __version__
from vlmkit.serve.json import JsonResponse
from vlmkit.serve.operations import Operation
from vlmkit.serve.service import Service

STARTED = int(time.time())


async def health(service: Service, _: Any) -> Response:
    return JsonResponse({"status": "ok", "version": __version__})


async def metrics(service: Service, _: Any) -> Response:
    return Response(service.metrics.text(), media_type=service.metrics.content_type)


async def models(service: Service, _: Any) -> Response:
    """The models that a request may name; what only a loaded model knows is null until it is."""
    data = []
    for known, (name, tasks) in service.models.names.items():
        embedder, chat = (service.models.loaded(task, name) for task in ("embed", "chat"))
        data.append(
            {
                "id": known,
                "object": "model",
                "created": STARTED,
                "owned_by": "vlmkit",
                "tasks": tasks,
                "loaded": bool(embedder or chat),
                "identity": getattr(embedder, "identity", None),
                "size": getattr(embedder, "size", None),
                "dimensions": getattr(embedder, "dim", None),
                "logit_scale": getattr(embedder, "logit_scale", None),
            }
        )
    return JsonResponse({"object": "list", "data": data})


OPERATIONS = [
    Operation("GET", "/health", health, "Whether the service answers; needs no token."),
    Operation("GET", "/metrics", metrics, "Counts for Prometheus.", media_type="text/plain"),
    Operation("GET", "/v1/models", models, "The models that requests may name."),
]
