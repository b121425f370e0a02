"""The whole server: the API and the page under one address, and what keeps both to themselves."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api import build_api
from .api_errors import refusal
from .limits import UPLOAD
from .page import mount_page
from .service import Service
from .tab_report import REPORT, report_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NAMES = ("127.0.0.1", "localhost", "[::1]")  # in the address of a request
# Whatever a page, a report or a card asks for elsewhere, the browser refuses; gradio's scripts are made at run time.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"


class Guard:
    """Refuses bodies that are too large, and lets nothing on the page ask another host.

    Args:
        names: those that it answers to, whatever a name server says of others; none for all.
    """

    def __init__(self, app: ASGIApp, most: int = UPLOAD, names: Collection[str] = ()) -> None:
        self.app, self.most, self.names = app, most, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = re.sub(r":\d+$", "", Headers(scope=scope).get("host", ""))
        if self.names and name not in self.names:
            await refusal(400, f"the Host is {name!r}: it must be {' or '.join(self.names)}")(scope, receive, send)
            return
        words, taken = f"the upload is larger than {self.most >> 20} MB: reduce the picture's size", 0
        if int(Headers(scope=scope).get("content-length", "0")) > self.most:
            await refusal(413, words)(scope, receive, send)
            return

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most:
                raise HTTPException(413, words)
            return message

        async def restricted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, counted, restricted)


def build_app(service: Service, host: str = LOOPBACK[0]) -> FastAPI:
    """The API and the page of `hybvit serve`, as an ASGI application.

    Args:
        service: the model.
        host: the address that the server listens on. On a loopback address, the application answers to no other name.
    """
    app = build_api(service)
    app.add_middleware(Guard, names=NAMES if host in LOOPBACK else ())
    report = report_of(service.name)
    if report is not None:
        app.get(f"/{REPORT}", include_in_schema=False)(lambda: FileResponse(report))
    mount_page(app, service)
    return app


class Server(uvicorn.Server):
    """Says where it is once it answers."""

    def __init__(self, config: uvicorn.Config, words: str) -> None:
        super().__init__(config)
        self.words = words

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.words, flush=True)


def serve(app: FastAPI, place: socket.socket, words: str) -> None:
    """Answer at a bound socket until a signal ends it; uploaded pictures go with it."""
    options: dict[str, Any] = {"log_level": "warning", "access_log": False, "ws": "none", "timeout_graceful_shutdown": 1}
    with app.state.uploads:
        Server(uvicorn.Config(app, **options), words).run(sockets=[place])
