"""What several commands share: the names of variables, the options for asking a server, how answers are printed."""

import json
from typing import Annotated, Any

import typer
from pydantic import BaseModel


def env(flag: str) -> str:
    """The variable that stands for a flag."""
    return "TREFOIL_" + flag.removeprefix("--").replace("-", "_").upper()


Url = Annotated[
    str | None,
    typer.Option(envvar=env("--url"), help="Server to ask; without one the command runs the model itself."),
]
ServerUrl = Annotated[str, typer.Option(envvar=env("--url"), help="Server to ask.")]
Key = Annotated[str | None, typer.Option("--api-key", envvar=env("--api-key"), help="The server's key.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Served name; without --url a folder or Hub id [the bundled demo models]."),
]
AsJson = Annotated[bool, typer.Option("--json", help="The whole answer as JSON, for scripts.")]

DEFAULT_URL = "http://127.0.0.1:8000"


def print_json(value: Any) -> None:
    """One JSON value a line."""
    typer.echo(json.dumps(plain(value), ensure_ascii=False))


def plain(value: Any) -> Any:
    """Models of the client as what they were read from."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    return [plain(item) for item in value] if isinstance(value, list) else value


def text_or_stdin(text: str | None) -> str:
    """The argument; `-` or none reads standard input."""
    return typer.get_text_stream("stdin").read().rstrip("\n") if text in (None, "-") else text or ""
