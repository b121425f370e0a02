"""Every error of the API as one line of JSON: what is wrong, and what would be right, which its OpenAPI document says."""

from __future__ import annotations

import json
from concurrent.futures import CancelledError
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from ..errors import ConfigError, DivergedError, did_you_mean
from .api_page import Taken, bounds_of, taken
from .limits import Busy, Gone

RETRY_AFTER = 2  # seconds
CLIENT_GONE = 499  # nginx's
UNREADABLE = {RecursionError: "it is nested too deep", UnicodeDecodeError: "it is not UTF-8"}  # for which fastapi has one line
KINDS = {"string": "text", "integer": "a whole number", "number": "a number", "null": "null"}


def refusal(status: int, words: str, **headers: str) -> JSONResponse:
    return JSONResponse({"detail": " ".join(words.split())}, status, headers)


def answer_errors(app: FastAPI) -> None:
    """Let every error be one line of JSON."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> JSONResponse:
        return refusal(422, sentence(error.errors()[0], taken_by(request)))

    @app.exception_handler(HTTPException)
    async def unreadable(request: Request, error: Any) -> JSONResponse:
        cause = next((words for kind, words in UNREADABLE.items() if isinstance(error.__cause__, kind)), None)
        return (
            refusal(422, f"the body is no JSON: {cause}")
            if cause
            else refusal(error.status_code, str(error.detail), **(error.headers or {}))
        )

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Exception) -> JSONResponse:
        return refusal(503, str(error), **{"Retry-After": str(RETRY_AFTER)})

    @app.exception_handler(ValueError)  # of which ConfigError and DataError are kinds
    async def refused(request: Request, error: Exception) -> JSONResponse:
        return refusal(422, str(error))

    @app.exception_handler(DivergedError)
    async def diverged(request: Request, error: Exception) -> JSONResponse:
        return refusal(500, str(error))

    @app.exception_handler(Exception)  # the server writes where it comes from to its log
    async def internal(request: Request, error: Exception) -> JSONResponse:
        return refusal(500, f"internal error: {type(error).__name__}: {error}")

    @app.exception_handler(Gone)
    @app.exception_handler(CancelledError)
    async def unheard(request: Request, error: Exception) -> JSONResponse:
        return refusal(CLIENT_GONE, "nobody waits for the answer")


def refuse_other_methods(app: FastAPI) -> None:
    """After all calls were added: the page below them would answer that there is no such address."""
    for path, calls in app.openapi()["paths"].items():
        allowed = ", ".join(calls).upper()
        app.router.routes.append(Route(path, refusal(405, f"{path} takes {allowed} only", Allow=allowed)))


async def refuse_unknown(request: Request) -> None:
    """
    Raises:
        ConfigError: the address or the form has a field that nothing reads.
    """
    fields = taken_by(request)
    sent = {"query": [*request.query_params]}
    if "form" in request.headers.get("content-type", ""):
        sent["form"] = [*await request.form()]
    for place, names in sent.items():
        for name in names:
            if (name, place) not in [(field.name, field.place) for field in fields]:
                raise ConfigError(unknown(name, place, fields))


def taken_by(request: Request) -> list[Taken]:
    """The fields of the call that a request makes."""
    document = request.app.openapi()
    call = document["paths"].get(request.scope["path"], {}).get(request.method.lower(), {})
    return taken(call, document["components"]["schemas"])


def unknown(name: str, place: str, fields: list[Taken]) -> str:
    known = [field.name for field in fields if field.place == place]
    cure = did_you_mean(name, known) or f": it takes {', '.join(known) or 'none'}"
    return f"{name}: there is no such field in the {place}{cure}"


def sentence(error: dict[str, Any], fields: list[Taken]) -> str:
    """What pydantic found wrong with a field, or with the body."""
    where, kind, given = error["loc"], error["type"], error.get("input")
    field = next((field for field in fields if field.name == where[1:2][0]), None) if where[1:] else None
    if kind == "json_invalid":
        return f"the body is no JSON: {error['ctx']['error']} at character {where[1]}"
    if kind == "extra_forbidden":
        return unknown(str(where[1]), "JSON", fields)
    if field is None:
        known = ", ".join(field.name for field in fields if field.place == "JSON")
        return f"the body is {shown(kind, given)}: it must be a JSON object of {known} (Content-Type: application/json)"
    return f"{field.name} is {shown(kind, given)}: it must be {allowed(field.schema)}"


def shown(kind: str, given: Any) -> str:
    if kind == "missing":
        return "missing"
    return f"{len(given)} files" if kind == "too_long" else json.dumps(given, default=str)[:60]


def allowed(schema: dict[str, Any]) -> str:
    """The values of a field, as in "a whole number from 1 to 64"."""
    kinds = [KINDS[option["type"]] for option in schema.get("anyOf", [schema]) if option["type"] in KINDS]
    return f"{' or '.join(kinds)} {bounds_of(schema)}".strip()
