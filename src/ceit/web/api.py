"""The JSON API: the bytes of an image in, what ``ceit predict --json`` prints out. Needs the extra ``web``."""

import re
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ceit.messages import unknown
from ceit.web.answers import TOP_K, Shown, answer


def api(models: Sequence[Shown]) -> Starlette:
    """The routes ``/api/models`` and ``/api/predict`` of these models; more may be mounted behind them."""
    by_name = {model.name: model for model in models}

    async def list_models(_request: Request) -> JSONResponse:
        return JSONResponse([model.as_dict() for model in models])

    async def predict(request: Request) -> JSONResponse:
        name, top_k = request.query_params.get("model", models[0].name), request.query_params.get("top_k", str(TOP_K))
        if name not in by_name:
            return _error(404, unknown("model", name, by_name))
        if not re.fullmatch(r"0{0,99}[1-9]\d{0,99}", top_k, re.ASCII):
            return _error(400, f"top_k {top_k} must be a whole number of at least 1")
        said = await run_in_threadpool(answer, by_name[name], await request.body(), int(top_k))
        return JSONResponse(said.as_dict()) if said.error is None else _error(422, said.error)

    routes = [Route("/api/models", list_models), Route("/api/predict", predict, methods=["POST"])]
    return Starlette(routes=routes)


def _error(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(sentence.split())}, status)
