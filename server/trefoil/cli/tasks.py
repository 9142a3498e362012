"""`trefoil classify | fill | tag | embed | tokenizer`: one text in, what the model sees in it out."""

import re
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trefoil.cli.connection import asking
from trefoil.cli.flags import AsJson, Key, Model, Url, print_json, text_or_stdin
from trefoil.errors import InvalidSetting
from trefoil_client.types import Fill, FilledSpans, Label
from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import find_folder
from trefoil_models.tokenizer import Tokenizer, TokenizerError

app = typer.Typer()

Text = Annotated[str | None, typer.Argument(help="The text; - or none reads standard input.")]
TopK = Annotated[int | None, typer.Option(min=1, help="How many to show.")]
GAP = re.compile(r"_{3,}|<extra_id_\d+>")


@app.command()
def classify(
    text: Text = None,
    pair: Annotated[str | None, typer.Option(help="The second text of a pair.")] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", help="Your own labels instead of the model's.")] = None,
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    top_k: TopK = None,
    as_json: AsJson = False,
) -> None:
    """Give a text labels, from the likeliest on."""
    content = text_or_stdin(text)
    with asking(url, api_key, model) as (client, name):
        if labels:
            found = client.zero_shot(content, labels, model=name)[:top_k]
        else:
            found = client.classify(content, pair, model=name, top_k=top_k)
    print_json(found) if as_json else _show_labels(found)


@app.command()
def fill(
    text: Text = None,
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    top_k: TopK = 5,
    as_json: AsJson = False,
) -> None:
    """Fill the masks of a text, `[MASK]` or `<mask>`, or its gaps of any length, `___`."""
    content = text_or_stdin(text)
    with asking(url, api_key, model) as (client, name):
        if GAP.search(content):
            filled = client.fill_spans(content, model=name, num_candidates=top_k)
            print_json(filled) if as_json else _show_spans(filled)
        else:
            masks = client.fill(content, model=name, top_k=top_k)
            print_json(masks) if as_json else _show_fills(masks)


@app.command()
def tag(
    text: Text = None,
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    aggregation: Annotated[str, typer.Option(help="none, simple, first, average or max.")] = "simple",
    as_json: AsJson = False,
) -> None:
    """Find names in a text."""
    content = text_or_stdin(text)
    with asking(url, api_key, model) as (client, name):
        entities = client.tag(content, model=name, aggregation_strategy=aggregation)
    if as_json:
        print_json(entities)
        return
    for entity in entities:
        typer.echo(f"{entity.score:7.4f}  {entity.name:<8} {entity.word}  [{entity.start}:{entity.end}]")


@app.command()
def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; none reads standard input, one a line.")] = None,
    model: Model = None,
    url: Url = None,
    api_key: Key = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Keep so many numbers of each vector.")] = None,
) -> None:
    """Turn texts into vectors, one JSON list a line."""
    given = texts or text_or_stdin(None).splitlines()
    with asking(url, api_key, model) as (client, name):
        for vector in client.embed(given, model=name, dimensions=dimensions).vectors:
            print_json(vector)


@app.command()
def tokenizer(
    model: Annotated[str, typer.Argument(help="A model's folder or Hub id.")],
    text: Annotated[str | None, typer.Argument(help="The text; - or none reads standard input.")] = None,
    special: Annotated[bool, typer.Option(help="Add the tokens that begin and end texts.")] = True,
    as_json: AsJson = False,
) -> None:
    """Show how a model cuts a text into tokens; needs no server."""
    try:
        found = Tokenizer.load(find_folder(model)).encode(text_or_stdin(text), add_special_tokens=special)
    except (CheckpointError, TokenizerError) as error:
        raise InvalidSetting("MODEL", model, f"a folder with a tokenizer: {error}") from error
    if as_json:
        print_json({"tokens": found.tokens, "ids": found.ids, "offsets": [list(pair) for pair in found.offsets]})
        return
    for token, token_id, (start, end) in zip(found.tokens, found.ids, found.offsets, strict=True):
        typer.echo(f"{token_id:8d}  {token!r}  [{start}:{end}]")
    typer.echo(f"{len(found.ids)} tokens")


def _show_labels(labels: list[Label]) -> None:
    for label in labels:
        typer.echo(f"{label.score:7.4f}  {'#' * round(label.score * 30):<30}  {label.label}")


def _show_spans(filled: FilledSpans) -> None:
    table = Table(box=None)
    table.add_column("score", justify="right")
    table.add_column("text")
    for one in filled.candidates:
        table.add_row(f"{one.score:.4f}", one.text)
    Console().print(table)


def _show_fills(masks: list[list[Fill]]) -> None:
    table = Table(box=None)
    for title in ("mask", "score", "token", "text"):
        table.add_column(title, justify="right" if title == "score" else "left")
    for number, candidates in enumerate(masks, start=1):
        for one in candidates:
            table.add_row(str(number), f"{one.score:.4f}", one.token_str, one.sequence)
    Console().print(table)
