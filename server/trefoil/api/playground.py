"""The page at `/`, and the API's reference at /docs: static files of our own, allowed to reach nobody else."""

from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = str(files("trefoil_web"))
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
DOCS_POLICY = f"{POLICY}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
"""swagger-ui writes styles and small pictures into the page."""
HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}

router = APIRouter(include_in_schema=False)


class Files(StaticFiles):
    """Files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


@router.get("/")
def page() -> FileResponse:
    """The playground."""
    return FileResponse(f"{FOLDER}/index.html", headers=HEADERS)


@router.get("/docs")
def reference() -> FileResponse:
    """The API's reference."""
    return FileResponse(f"{FOLDER}/docs.html", headers={**HEADERS, "content-security-policy": DOCS_POLICY})


def add_playground(app: FastAPI) -> None:
    """Put the pages and their files into the application."""
    app.include_router(router)
    app.mount("/static", Files(directory=FOLDER), name="static")
