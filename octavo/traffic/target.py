"""Target: where requests go, and what a request looks like. Any server that speaks OpenAI's API."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from ..errors import OctavoError, UsageError
from .prompts import Prompt

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True)
class Target:
    """A model on a server."""

    url: str
    """http://host:port, with or without the path that ends in /v1."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    endpoint: Endpoint = "chat"
    temperature: float = 0.0
    timeout: float = 600.0
    """Seconds a request may take, from sending it to the end of its answer."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            good = False
        if not good:
            raise UsageError(f"{self.url!r} is no address of a server", where="--url", remedy="such as http://127.0.0.1:8000")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if urlsplit(self.url).scheme == "https" else None

    @property
    def root(self) -> str:
        """The address without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    def request(self, prompt: Prompt, ignore_end: bool, number: int) -> bytes:
        """The bytes of one streamed request. `number` is its seed, for temperatures above 0."""
        asked: dict[str, Any] = {"model": self.model, "max_tokens": prompt.max_tokens, "temperature": self.temperature, "stream": True,
                                 "stream_options": {"include_usage": True}}
        if self.temperature:
            asked["seed"] = number
        if ignore_end:
            asked["ignore_eos"] = True
        if self.endpoint == "chat":
            asked["messages"] = [{"role": role, "content": text} for role, text in prompt.messages]
        else:
            asked["prompt"] = prompt.text
        body = json.dumps(asked).encode()
        path = urlsplit(self.root).path + ("/v1/chat/completions" if self.endpoint == "chat" else "/v1/completions")
        head = [f"POST {path} HTTP/1.1", f"Host: {urlsplit(self.url).netloc.rpartition('@')[2]}", "Content-Type: application/json",
                "Accept: text/event-stream", f"Content-Length: {len(body)}"]
        if self.api_key:
            head.append(f"Authorization: Bearer {self.api_key}")
        return "\r\n".join(head).encode() + b"\r\n\r\n" + body

    def get(self, path: str, timeout: float = 10.0) -> bytes:
        """A small page of the server, such as /metrics. Raises OctavoError where it cannot be had. Blocks."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.root + path, headers=headers), timeout=timeout) as reply:
                found: bytes = reply.read()
                return found
        except urllib.error.HTTPError as error:
            raise OctavoError(f"status {error.code}", where=self.root + path) from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise OctavoError(f"no answer: {reason}", where=self.root + path, remedy="is the server running there?") from None

    def get_json(self, path: str) -> Any:
        try:
            return json.loads(self.get(path))
        except ValueError:
            raise OctavoError("the answer is no JSON", where=self.root + path, remedy="is it a server with OpenAI's API?") from None


def first_model(target: Target) -> str:
    """The name of the first model that the server lists."""
    try:
        return str(target.get_json("/v1/models")["data"][0]["id"])
    except (TypeError, KeyError, IndexError):
        raise OctavoError("the server lists no model", where=target.root + "/v1/models", remedy="name it with --model") from None
