"""What a caller gets to read when something is wrong."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from searcher.contracts.errors import ErrorBody, InvalidInput, NotFound, SearcherError, TooLarge, Unavailable

log = structlog.get_logger()


def render_errors(app: FastAPI) -> None:
    """Every error of a route in our form."""

    @app.exception_handler(SearcherError)
    async def known(request: Request, error: SearcherError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(InvalidInput(explain(error.errors())))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        kind = {413: TooLarge, 404: NotFound}.get(error.status_code, InvalidInput)
        detail = error.detail if error.status_code == 413 else f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(kind(detail).body().model_dump(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return unhandled(request.url.path, error)


def error_response(error: SearcherError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    headers = dict(headers or {})
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    return JSONResponse(error.body().model_dump(), error.status, headers)


def unhandled(path: str, error: Exception) -> JSONResponse:
    """A fault of ours: the log says what, its caller nothing of it."""
    log.error("unhandled", path=path, exc_info=error)
    body = ErrorBody(error="InternalError", detail="see the service's log").model_dump()
    return JSONResponse(body, 500, {"Connection": "close"})  # uvicorn closes it in any case


def explain(problems: Iterable[Any]) -> str:
    """What pydantic found, in one line. It counts right items only: a list with a wrong one is also too short to it."""
    found = list(problems)
    parents = {problem["loc"][:-1] for problem in found}
    told = (problem for problem in found if problem["type"] != "too_short" or problem["loc"] not in parents)
    return "; ".join(map(_explain, told))


def _explain(problem: dict[str, Any]) -> str:
    """`body.queries.0: String should have at least 1 character (got '')`"""
    given = repr(problem.get("input"))
    given = given if len(given) <= 80 else given[:77] + "…"
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']} (got {given})"
