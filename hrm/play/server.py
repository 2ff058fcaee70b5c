"""The server of ``hrm play``: the page's files, the list of models, and their segments as they are computed."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch

from hrm.errors import InputError
from hrm.inference.engine.segment import residual
from hrm.inference.segments import evaluating, segments
from hrm.model import HRM
from hrm.play.catalogue import PAGE

MOST_ROWS, MOST_SEGMENTS, _MOST_BYTES = 64, 256, 1 << 24
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True)
class Played:
    """A model on the page.

    Attributes:
        model: in evaluation mode.
        about: what the page must know of it (:func:`hrm.play.catalogue.page_model`).
    """

    model: HRM
    about: dict[str, Any]


class PlayServer(ThreadingHTTPServer):
    """Serves the page to this machine; one model computes at a time.

    Args:
        address: host and port; port 0 takes a free one.
        played: the models, in the order of the page.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], played: list[Played]) -> None:
        super().__init__(address, _Handler)
        self.played = {one.about["name"]: one for one in played}
        self.computes = threading.Lock()

    @property
    def url(self) -> str:
        """The address for a browser."""
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"  # type: ignore[str-bytes-safe]


class _Handler(BaseHTTPRequestHandler):
    server: PlayServer

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].lstrip("/") or "index.html"
        if name == "models.json":
            models = [one.about for one in self.server.played.values()]
            self._send("application/json", json.dumps({"thinker": "server", "models": models}).encode())
        elif name in {file.name for file in PAGE.iterdir()}:
            file = PAGE / name
            self._send(_TYPES[file.suffix], file.read_bytes())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Stream the segments of ``{"model", "rows", "segments"}``, one JSON object and line each."""
        # a page of another site cannot send this type without asking first, which is not answered
        if self.path != "/think" or self.headers.get("Content-Type") != "application/json":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            answers = think(self.server, self._body())
        except InputError as error:
            self._send("text/plain", str(error).encode(), HTTPStatus.BAD_REQUEST)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        try:
            for one in answers:
                self.wfile.write(json.dumps(one).encode() + b"\n")
                self.wfile.flush()
        except OSError:  # the page stopped it
            pass
        finally:
            answers.close()  # type: ignore[attr-defined]

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _MOST_BYTES:
            raise InputError(f"a request of {length or 'unknown'} bytes, expected at most {_MOST_BYTES}")
        try:
            return json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise InputError(f"the request is not JSON: {error}") from None

    def _send(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        self.end_headers()
        self.wfile.write(body)

    def parse_request(self) -> bool:
        """Refuse a request that names another host: a page of another site could reach this machine by its own name."""
        if not super().parse_request():
            return False
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host in ("localhost", "127.0.0.1", "[::1]", str(self.server.server_address[0])):
            return True
        self.send_error(HTTPStatus.FORBIDDEN)
        return False

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


def think(server: PlayServer, request: Any) -> Iterator[dict[str, Any]]:
    """The segments of a request, after each the answers of all its rows.

    Raises:
        InputError: the request names no model of the page, or its rows do not fit the model; at once, not at the first
            segment.
    """
    name = request.get("model") if isinstance(request, dict) else None
    if name not in server.played:
        raise InputError(f"model is {name!r}, expected one of {', '.join(server.played)}")
    model, limit = server.played[name].model, request.get("segments")
    if type(limit) is not int or not 1 <= limit <= MOST_SEGMENTS:
        raise InputError(f"segments is {limit!r}, expected 1 to {MOST_SEGMENTS}")
    return _segments(server, model, _rows(model, request.get("rows")), limit)


def _rows(model: HRM, rows: Any) -> torch.Tensor:
    """``[n, seq_len]`` int64 tokens."""
    config = model.config
    try:
        tokens = np.array(rows)
    except ValueError:
        tokens = np.array(None)
    fits = tokens.dtype.kind == "i" and tokens.ndim == 2 and tokens.shape[1] == config.seq_len
    if not fits or not 1 <= len(tokens) <= MOST_ROWS or tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise InputError(
            f"rows is {tokens.dtype} {list(tokens.shape)}, expected tokens below {config.vocab_size}, "
            f"[n, {config.seq_len}] with n from 1 to {MOST_ROWS}"
        )
    return torch.from_numpy(tokens.astype(np.int64))


def _segments(server: PlayServer, model: HRM, rows: torch.Tensor, limit: int) -> Iterator[dict[str, Any]]:
    device = next(model.parameters()).device
    inputs = rows.to(device)
    batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(len(rows), dtype=torch.int64, device=device)}
    with server.computes, evaluating(model):
        for segment in segments(model, batch, limit):
            q_halt, q_continue = segment.outputs["q_halt_logits"], segment.outputs["q_continue_logits"]
            yield {
                "tokens": segment.tokens.tolist(),
                "qHalt": q_halt.tolist(),
                "qContinue": q_continue.tolist(),
                "residual": residual(segment.outputs["change"]).tolist(),
            }
