"""The page at `/`: three files, served as they are. It needs nothing from elsewhere, and its policy lets nothing in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

FOLDER = Path(__file__).parent / "page"
FILES = {"/": ("index.html", "text/html"), "/page/style.css": ("style.css", "text/css"), "/page/script.js": ("script.js", "text/javascript")}
# connect-src: the playground may ask another server, which must allow this page by --cors-origin.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self' http: https:; base-uri 'none'; form-action 'none'; "
          "frame-ancestors 'none'")


def router() -> APIRouter:
    """Routes of the page; the files are read once."""
    found = APIRouter()
    for path, (name, kind) in FILES.items():
        found.add_api_route(path, _sender((FOLDER / name).read_bytes(), kind), methods=["GET"], include_in_schema=False)
    return found


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers={
            "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"})

    return send
