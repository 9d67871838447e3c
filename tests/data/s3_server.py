"""A real S3 server on loopback, and a way to it on which requests can fail."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable
from urllib.parse import urlsplit


class Way:
    """Forwards requests to the server behind `target`; `fault(method, path)` may answer, or spoil the answer, instead.

    A fault is a status, "cut" (half of the body), or "drop" (the connection ends); None lets the request through.
    """

    def __init__(self, target: str):
        self.target, self.fault, self.requests = urlsplit(target).netloc, no_fault, []
        way = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                way.serve(self)

            do_HEAD = do_PUT = do_GET

            def log_message(self, *words: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.command, handler.path, handler.headers.get("Range")))
        fault = self.fault(handler.command, handler.path)
        if fault == "drop":
            handler.close_connection = True
            return
        if isinstance(fault, int):
            handler.send_response(fault)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        there = http.client.HTTPConnection(self.target)
        there.request(handler.command, handler.path, headers=dict(handler.headers))
        answer = there.getresponse()
        body = answer.read()
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                handler.send_header(name, value)
        length = answer.headers["Content-Length"] if handler.command == "HEAD" else str(len(body))
        handler.send_header("Content-Length", length or "0")
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        handler.close_connection = fault == "cut"

    def reads(self) -> list[str]:
        """The ranges that were asked for so far; forgets them."""
        found = [span for _, _, span in self.requests if span]
        self.requests.clear()
        return found


def no_fault(method: str, path: str) -> None:
    return None


def first(count: int, fault: object, *, reads_only: bool = True) -> Callable[[str, str], object]:
    """The first requests fail, of objects and not of lists of them."""
    left = [count]

    def decide(method: str, path: str) -> object:
        if reads_only and ".tar" not in path.partition("?")[0]:
            return None
        left[0] -= 1
        return fault if left[0] >= 0 else None

    return decide
