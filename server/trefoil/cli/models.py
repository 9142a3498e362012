"""`trefoil models`: what a server serves."""

import typer
from rich.console import Console
from rich.table import Table

from trefoil.cli.connection import asking
from trefoil.cli.flags import DEFAULT_URL, AsJson, Key, ServerUrl, print_json

app = typer.Typer()


@app.command()
def models(url: ServerUrl = DEFAULT_URL, api_key: Key = None, as_json: AsJson = False) -> None:
    """List a server's models, with what each can do."""
    with asking(url, api_key, None) as (client, _):
        served = client.models()
    if as_json:
        print_json(served)
        return
    table = Table(box=None)
    for title in ("name", "family", "architecture", "context", "dtype", "tasks"):
        table.add_column(title, justify="right" if title == "context" else "left")
    for model in served:
        about = (model.family, model.architecture, model.max_model_len, model.dtype)
        unknown = "-" if model.tasks else "loading"
        table.add_row(model.id, *(unknown if word is None else str(word) for word in about), ", ".join(model.tasks))
    Console().print(table)
