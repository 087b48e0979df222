"""The web application of a listening test: a page, its data as JSON, and sounds behind addresses that say nothing.

Cookies are HttpOnly and SameSite=Strict, requests that change something are JSON from the study's own page, and no
address or browser of a listener is looked at or stored.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Any

from diffdpo.errors import ConfigError, UserError
from diffdpo.listen.admin import read_progress
from diffdpo.listen.database import token_hash
from diffdpo.listen.enrolment import (
    delete_own_data,
    enrol,
    finish_stage,
    headphone_item,
    read_own_data,
    read_state,
)
from diffdpo.listen.guard import COOKIE, Guard, read_cookie
from diffdpo.listen.live import LiveStudy, RefusalError
from diffdpo.listen.presentation import end_break, next_trial, read_stimulus
from diffdpo.listen.responses import accept_answer, report_playback
from diffdpo.listen.results import write_results
from diffdpo.progress import log

STATIC = Path(__file__).with_name("static")
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
PAGES = {"/": "page.html", "/admin": "admin.html"}
COOKIE_DAYS = 180


def check_installed() -> None:
    """ConfigError without the libraries of the web application."""
    try:
        import fastapi
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f'listening tests need fastapi and uvicorn ({error}); install them with `pip install "diffdpo[people]"`'
        ) from None
    del fastapi


def build_app(live: LiveStudy, admin_token: str) -> Any:
    """The ASGI application of a study. When it ends it writes the tables and closes the database."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        write_results(live.database, live.out)
        live.database.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(RefusalError)
    def on_refusal(request: Request, error: RefusalError) -> JSONResponse:
        return JSONResponse(error.details, error.status)

    @app.exception_handler(UserError)
    def on_broken_song(request: Request, error: UserError) -> JSONResponse:
        log(f"warning: {error}")
        return JSONResponse(
            {"detail": "a song cannot be played; please tell the people who run the study"}, 503
        )

    @app.exception_handler(RequestValidationError)
    def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": "not a JSON object"}, 422)

    _add_files(app)
    _add_stages(app, live)
    _add_trials(app, live)
    _add_admin(app, live, admin_token)
    app.add_middleware(Guard, live=live, admin_token=admin_token)
    return app


def _add_files(app: Any) -> None:
    """The page, its script and style, read once."""
    from fastapi import Response

    def serve(name: str) -> Callable[[], Response]:
        content = (STATIC / name).read_bytes()
        media_type = MEDIA_TYPES[Path(name).suffix]
        return lambda: Response(content, media_type=media_type)

    for address, name in PAGES.items():
        app.add_api_route(address, serve(name), methods=["GET"])
    for path in STATIC.iterdir():
        if path.suffix in (".js", ".css"):
            app.add_api_route(f"/{path.name}", serve(path.name), methods=["GET"])


def _add_stages(app: Any, live: LiveStudy) -> None:
    """Consent, background, volume, headphones; and everything of a listener, to keep or to delete."""
    from fastapi import Body, Depends, Request, Response
    from fastapi.responses import JSONResponse

    def token_of(request: Request) -> str:
        return read_cookie(request.headers.get("cookie", ""))

    Token = Annotated[str, Depends(token_of)]  # noqa: N806 - a type
    Json = Annotated[dict[str, Any], Body()]  # noqa: N806

    @app.get("/api/state")
    def state(token: Token) -> dict[str, Any]:
        return read_state(live, token)

    @app.post("/api/consent")
    def consent(body: Json, request: Request, token: Token) -> JSONResponse:
        token, state = enrol(live, token, body)
        response = JSONResponse(state)
        response.set_cookie(
            COOKIE,
            token,
            max_age=COOKIE_DAYS * 24 * 3600,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @app.post("/api/stage/{stage}")
    def stage(stage: str, body: Json, token: Token) -> dict[str, Any]:
        if stage not in live.stages[:-1]:
            raise RefusalError(404, "no such stage")
        return finish_stage(live, token, stage, body)

    @app.get("/audio/headphones/{number}")
    def headphones(number: int, token: Token) -> Response:
        return Response(headphone_item(live, token, number), media_type="audio/flac")

    @app.get("/api/mine")
    def mine(token: Token) -> JSONResponse:
        disposition = {"Content-Disposition": 'attachment; filename="my-data.json"'}
        return JSONResponse(read_own_data(live, token), headers=disposition)

    @app.post("/api/delete")
    def delete(body: Json, token: Token) -> JSONResponse:
        response = JSONResponse(delete_own_data(live, token, body))
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _add_trials(app: Any, live: LiveStudy) -> None:
    """Trials, their sounds, what is played of them, and answers."""
    from fastapi import Body, Depends, Request, Response

    def token_of(request: Request) -> str:
        return read_cookie(request.headers.get("cookie", ""))

    Token = Annotated[str, Depends(token_of)]  # noqa: N806 - a type
    Json = Annotated[dict[str, Any], Body()]  # noqa: N806

    @app.post("/api/trial")
    def trial(body: Json, token: Token) -> dict[str, Any]:
        return next_trial(live, token)

    @app.post("/api/break")
    def end_of_break(body: Json, token: Token) -> dict[str, Any]:
        return end_break(live, token)

    @app.get("/audio/{stimulus}")
    def audio(stimulus: str, token: Token) -> Response:
        return Response(read_stimulus(live, token, stimulus), media_type="audio/flac")

    @app.post("/api/playback")
    def playback(body: Json, token: Token) -> dict[str, Any]:
        return report_playback(live, token, body)

    @app.post("/api/answer")
    def answer(body: Json, token: Token) -> dict[str, Any]:
        return accept_answer(live, token, body)


def _add_admin(app: Any, live: LiveStudy, admin_token: str) -> None:
    """Progress and export, for those who hold the admin's token."""
    from fastapi import Body, Header

    Authorization = Annotated[str, Header()]  # noqa: N806 - a type
    admin_hash = token_hash(admin_token)

    def check(authorization: str) -> None:
        if not compare_digest(token_hash(authorization.removeprefix("Bearer ")), admin_hash):
            raise RefusalError(
                401, "the address of the admin page has a token behind #, which is printed at the start"
            )

    @app.get("/api/admin/progress")
    def progress(authorization: Authorization = "") -> dict[str, Any]:
        check(authorization)
        return read_progress(live)

    @app.post("/api/admin/export")
    def export(body: Annotated[dict[str, Any], Body()], authorization: Authorization = "") -> dict[str, int]:
        check(authorization)
        votes, opinions = write_results(live.database, live.out)
        return {"votes": votes, "opinions": opinions}
