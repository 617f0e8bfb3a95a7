"""The HTTP application: endpoints, guards and error shapes around one Service."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from .. import __version__
from . import chat, completions, problems, routes, site
from .guard import Count, Guard
from .metrics import Exposition
from .service import Service


def build_app(service: Service) -> FastAPI:
    """The ASGI application. Answers 503 until `service.open` is called."""
    app = FastAPI(title="Octavo", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.state.exposition = Exposition(service)
    for router in (chat.router, completions.router, routes.router, *([site.router()] if service.options.page else [])):
        app.include_router(router)
    problems.install(app)
    # The last one added is the outermost.
    app.add_middleware(Guard, service=service)
    if service.options.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=service.options.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    app.add_middleware(Count, service=service)
    return app
