"""HTTP/1.1 responses out of bytes as they come: just what a load generator needs, in as little time as it can.

A parser of its own, because what measures must not use up what it measures: h11 alone takes as long for a streamed token as this parser, the JSON and the
stamps together (docs/bench.md has the numbers). Only responses to requests that we sent, one after the other, are understood; anything odd is a failure, not
a guess.
"""

from __future__ import annotations


class Malformed(Exception):
    """Bytes that are no HTTP/1.1 response."""


LONGEST_HEAD = 1 << 16


class Response:
    """One response: feed it bytes, take the body's bytes. `ended` once it is whole; `keep` whether the connection may be used again."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = self.keep = False
        self._buffer = b""
        self._left: int | None = None                    # bytes until the end of the body or the chunk; None: until the connection closes
        self._chunked = False

    def feed(self, data: bytes) -> bytes:
        """Body bytes in `data`. Raises Malformed."""
        if self.ended:
            raise Malformed("bytes after the end of a response")
        if not self.status:
            self._buffer += data
            head, found, data = self._buffer.partition(b"\r\n\r\n")
            if not found:
                if len(self._buffer) > LONGEST_HEAD:
                    raise Malformed("headers without an end")
                return b""
            self._buffer = b""
            self._read_head(head)
            if self.status < 200:                        # 100 Continue and the like: the real one follows
                self.status = 0
                return self.feed(data) if data else b""
        return self._chunks(data) if self._chunked else self._plain(data)

    def closed(self) -> bool:
        """The connection has closed; whether the response is whole."""
        if self.status and not self._chunked and self._left is None:
            self.ended = True
        return self.ended

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise Malformed(f"not an HTTP/1.1 answer: {first[:80]!r}")
        self.status = int(rest[:3])
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        connection = self.headers.get("connection", "").lower()
        self.keep = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        self._chunked = self.headers.get("transfer-encoding", "").lower().endswith("chunked")
        length = self.headers.get("content-length")
        if self._chunked:
            self._left = 0
        elif length is not None:
            if not length.isdigit():
                raise Malformed(f"a Content-Length of {length[:40]!r}")
            self._left = int(length)
        elif self.status in (204, 304):
            self._left = 0
        else:
            self.keep = False

    def _plain(self, data: bytes) -> bytes:
        if self._left is not None:
            if len(data) > self._left:
                raise Malformed("more bytes than Content-Length says")
            self._left -= len(data)
            self.ended = self._left == 0
        return data

    def _chunks(self, data: bytes) -> bytes:
        """`_left` is what is missing of a chunk with the line end after it; 0 before a chunk's size."""
        assert self._left is not None
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        parts, place = [], 0
        while place < len(data):
            if self._left:
                piece = data[place : place + self._left]
                place += len(piece)
                text = max(self._left - 2, 0)            # the last two of what is left are \r\n
                parts.append(piece[:text])
                self._left -= len(piece)
                continue
            end = data.find(b"\r\n", place)
            if end < 0:
                if len(data) - place > LONGEST_HEAD:
                    raise Malformed("a chunk's size without an end")
                self._buffer = data[place:]
                break
            try:
                size = int(data[place:end].partition(b";")[0], 16)
            except ValueError:
                raise Malformed(f"a chunk's size of {data[place:end][:40]!r}") from None
            if size == 0:
                tail = data.find(b"\r\n\r\n", end - 0)   # without trailers the line's own end is the first half of it
                if tail < 0:
                    self._buffer = data[place:]
                    break
                if tail + 4 != len(data):
                    raise Malformed("bytes after the end of a response")
                self.ended = True
                break
            place, self._left = end + 2, size + 2
        return b"".join(parts)
