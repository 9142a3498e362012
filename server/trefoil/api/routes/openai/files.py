"""/v1/files: uploads for training, streamed to disk and looked through line by line."""

from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from trefoil.api.deps import Stored
from trefoil.api.reference import Answer, Responses, fails
from trefoil.errors import InvalidRequest, WrongState
from trefoil.rows import RowError, parse_lines
from trefoil.store.files import Page, StoredFile
from trefoil.store.store import Store

router = APIRouter()

PURPOSES = ("fine-tune",)
MOST_FILENAME = 255
LIFETIMES_S = (3600, 2_592_000)

BYTES = {"type": "string", "format": "binary"}
CONTENT: Responses = {200: {"content": {"application/octet-stream": {"schema": BYTES}}}}

Limit = Annotated[int, Query(ge=1, le=10_000)]


class FileAnswer(Answer):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed", "error"]
    status_details: str | None


class FileList(Answer):
    object: Literal["list"]
    data: list[FileAnswer]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedFile(Answer):
    id: str
    object: Literal["file"]
    deleted: bool


FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": BYTES,
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": LIFETIMES_S[0],
                            "maximum": LIFETIMES_S[1],
                        },
                    },
                }
            }
        },
    }
}


@router.post("/v1/files", response_model=FileAnswer, openapi_extra=FORM)
async def upload(request: Request, store: Stored) -> dict[str, Any]:
    """Keep a training file. What is wrong with its content is told by its status, and fails the jobs that use it."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequest("send the file as multipart/form-data with the fields `file` and `purpose`")
    async with request.form(max_files=1, max_fields=10) as form:
        file, purpose, lifetime_s = _file(form), _purpose(form), _lifetime(form)
        stored = await run_in_threadpool(_keep, store, file, purpose, lifetime_s)
    return describe(stored)


@router.get("/v1/files", response_model=FileList, responses=fails(404))
def list_files(
    store: Stored,
    purpose: str | None = None,
    limit: Limit = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    """Uploads, newest first."""
    store.files.sweep()
    files, has_more = store.files.list(Page(limit, after, is_newest_first=order == "desc"), purpose=purpose)
    return {
        "object": "list",
        "data": [describe(file) for file in files],
        "has_more": has_more,
        "first_id": files[0].id if files else None,
        "last_id": files[-1].id if files else None,
    }


@router.get("/v1/files/{file_id}", response_model=FileAnswer)
def get_file(file_id: str, store: Stored) -> dict[str, Any]:
    """One upload."""
    return describe(store.files.get(file_id))


@router.get("/v1/files/{file_id}/content", response_class=FileResponse, responses=CONTENT)
def get_content(file_id: str, store: Stored) -> FileResponse:
    """The bytes as they came."""
    file = store.files.get(file_id)
    return FileResponse(store.files.path(file_id), media_type="application/octet-stream", filename=file.filename)


@router.delete("/v1/files/{file_id}", response_model=DeletedFile, responses=fails(409))
def delete_file(file_id: str, store: Stored) -> dict[str, Any]:
    """Forget an upload that no job needs any more."""
    if store.jobs.uses_file(file_id):
        raise WrongState("a job that is not over uses this file; cancel the job first", param="file_id")
    store.files.drop(file_id)
    return {"id": file_id, "object": "file", "deleted": True}


def describe(file: StoredFile) -> dict[str, Any]:
    """OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": None if file.expires_at is None else int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "error" if file.problem else "processed",
        "status_details": file.problem,
    }


def _keep(store: Store, file: UploadFile, purpose: str, lifetime_s: int | None) -> StoredFile:
    filename = (file.filename or "file")[:MOST_FILENAME]
    problem = _problem(file.file, filename)
    file.file.seek(0)
    return store.files.add(file.file, filename=filename, purpose=purpose, problem=problem, lifetime_s=lifetime_s)


def _problem(source: BinaryIO, filename: str) -> str | None:
    """The first thing wrong with the lines, or None."""
    try:
        for _ in parse_lines(source, filename):
            pass
    except RowError as error:
        return str(error)
    return None


def _file(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("the form has no file in its field `file`", param="file")
    return file


def _purpose(form: FormData) -> str:
    purpose = form.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of: {', '.join(PURPOSES)}", param="purpose")
    return str(purpose)


def _lifetime(form: FormData) -> int | None:
    """Seconds from now on, by OpenAI's `expires_after[anchor]` and `expires_after[seconds]`."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("expires_after.anchor must be created_at", param="expires_after.anchor")
    least, most = LIFETIMES_S
    if not isinstance(seconds, str) or not seconds.isdecimal() or not least <= int(seconds) <= most:
        raise InvalidRequest(
            f"expires_after.seconds must be a whole number from {least} to {most}", param="expires_after.seconds"
        )
    return int(seconds)
