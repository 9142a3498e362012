"""`trefoil generate` and `trefoil chat`: text from a model, as it comes."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from trefoil.cli.connection import asking
from trefoil.cli.flags import AsJson, Key, Model, Url, print_json, text_or_stdin
from trefoil_client import Trefoil

app = typer.Typer()

MaxTokens = Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(min=0, max=1, help="Share of probability that is drawn from.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]

HELP = "/clear forgets the conversation, /save FILE writes it, /quit leaves"


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; - or none reads standard input.")] = None,
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: AsJson = False,
) -> None:
    """Continue a text."""
    text = text_or_stdin(prompt)
    options = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    with asking(url, api_key, model) as (client, name):
        if as_json:
            print_json(client.complete(text, model=name, **options))
            return
        for chunk in client.stream_complete(text, model=name, **options):
            typer.echo(chunk.text, nl=False)
        typer.echo()


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="One message; none: a conversation.")] = None,
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    system: Annotated[str | None, typer.Option(help="What the assistant is told before all else.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: AsJson = False,
) -> None:
    """Talk to a model; it remembers the conversation."""
    told: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    options = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    with asking(url, api_key, model) as (client, name):
        options["model"] = name
        if message is None:
            _converse(client, told, options)
        elif as_json:
            print_json(client.chat([*told, {"role": "user", "content": text_or_stdin(message)}], **options))
        else:
            _answer(client, [*told, {"role": "user", "content": text_or_stdin(message)}], options)


def _converse(client: Trefoil, told: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """Turn after turn until the end of input."""
    console = Console(stderr=True)
    console.print(HELP, style="dim")
    history = list(told)
    while (line := _line()) is not None:
        match line.split(maxsplit=1):
            case []:
                continue
            case ["/quit"]:
                return
            case ["/clear"]:
                history = list(told)
            case ["/save", path]:
                console.print(_save(history, Path(path)), style="dim")
            case [word, *_] if word.startswith("/"):
                console.print(HELP, style="dim")
            case _:
                history.append({"role": "user", "content": line})
                history.append({"role": "assistant", "content": _answer(client, history, options)})


def _line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


def _answer(client: Trefoil, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """Show an answer as it comes; Ctrl-C ends it and keeps what came."""
    parts: list[str] = []
    with client.stream_chat(messages, **options) as stream:
        try:
            for chunk in stream:
                typer.echo(chunk.text, nl=False)
                parts.append(chunk.text)
        except KeyboardInterrupt:
            pass
    typer.echo()
    return "".join(parts)


def _save(history: list[dict[str, Any]], path: Path) -> str:
    text = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in history)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"written to {path}"


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
