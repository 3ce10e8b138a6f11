"""The page over the index: routes that `vlmkit.serve.app` adds to those of the service."""

from starlette.routing import BaseRoute

from vlmkit.serve.service import Service


def routes(service: Service) -> list[BaseRoute]:
    """The routes of the page, such as `/`. They set a Content-Security-Policy of their own, if they need another."""
    return []
