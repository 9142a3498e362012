"""`trefoil train`: a training job without a server of one's own, and its model in a folder."""

import json
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from trefoil.cli.connection import database_in, own_server
from trefoil.cli.jobs import Data, Method, Objective, Seed, Set, Validation, follow, submit
from trefoil.errors import InvalidSetting
from trefoil.store.store import Store
from trefoil_models.model_folder import ADAPTER_CONFIG

app = typer.Typer()

WORK = ".training"
"""What a training needs on its way, within the folder of the model to be."""


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A model's folder or Hub id.")],
    data: Data,
    out: Annotated[
        Path, typer.Option(help="Folder for the model: a whole one, or an adapter (`trefoil serve --lora`).")
    ],
    method: Method = "supervised",
    settings: Set = None,
    objective: Objective = None,
    validation: Validation = None,
    seed: Seed = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to compute.")] = "cpu",
) -> None:
    """Train a model here and write it to a folder. The same command goes on with what was interrupted."""
    if not data.is_file():
        raise InvalidSetting("DATA", str(data), "a readable file")
    work = out / WORK
    if out.is_dir() and any(path != work for path in out.iterdir()):
        raise InvalidSetting("--out", str(out), "a folder that is empty or not there yet")
    missing = [path for path in (work, *work.parents) if not path.exists()]
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting("--out", str(out), f"a folder that can be written ({error.strerror})") from error
    with ExitStack() as undo:
        undo.callback(_remove, missing)
        with own_server(model, data_dir=work, device=device) as client:
            begun = [job for job in client.jobs() if job.finished_at is None]
            if begun:
                typer.echo(f"going on with what was begun; delete {work} to begin anew", err=True)
            (job, *_) = begun or [submit(client, "model", data, method, settings, objective, validation, seed=seed)]
            undo.pop_all()  # from here on there is something to go on with
            name = follow(client, job.id).fine_tuned_model
    _move(work, name, out)
    _name_base(out / ADAPTER_CONFIG, model)
    typer.echo(out)


def _remove(made: list[Path]) -> None:
    """A folder and then those above it, these only where nobody has put anything else there."""
    if made:
        shutil.rmtree(made[0], ignore_errors=True)
        with suppress(OSError):
            for folder in made[1:]:
                folder.rmdir()


def _move(work: Path, name: str | None, out: Path) -> None:
    """The model of that name, file by file, and then nothing else is left there."""
    store = Store.open(database_in(work), work)
    (made,) = [model for model in store.catalog.all() if model.name == name]
    store.close()
    for path in Path(made.folder).iterdir():
        path.rename(out / path.name)
    shutil.rmtree(work)


def _name_base(adapter: Path, model: str) -> None:
    """Let an adapter know its base by the folder or Hub id that was given, as peft does."""
    if adapter.is_file():
        about = json.loads(adapter.read_text(encoding="utf-8"))
        about["base_model_name_or_path"] = str(Path(model).resolve()) if Path(model).exists() else model
        adapter.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
