"""`trefoil jobs`: create, list, show, watch, cancel, pause and resume training jobs of a server."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trefoil.cli.connection import asking
from trefoil.cli.flags import DEFAULT_URL, AsJson, Key, ServerUrl, print_json
from trefoil.errors import InvalidSetting
from trefoil_client import JobFailed, Trefoil
from trefoil_client.types import Job, JobEvent

app = typer.Typer(no_args_is_help=True, help="Training jobs of a server.")

JobId = Annotated[str, typer.Argument(help="The job's id.")]
Data = Annotated[Path, typer.Argument(help="JSON lines; see docs/training.md for the formats.")]
Method = Annotated[str, typer.Option(help="supervised, dpo, reward, ppo, grpo, pretrain, classification, ...")]
Set = Annotated[list[str] | None, typer.Option("--set", help='A hyperparameter, such as n_epochs=3 or lora={"r": 8}.')]
Objective = Annotated[str | None, typer.Option(help="Of pretrain: clm, mlm, span_corruption, ...")]
Validation = Annotated[Path | None, typer.Option(help="JSON lines that are never trained on.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same model.")]


@app.command()
def create(
    model: Annotated[str, typer.Argument(help="The model to train.")],
    data: Data,
    method: Method = "supervised",
    settings: Set = None,
    objective: Objective = None,
    validation: Validation = None,
    suffix: Annotated[str | None, typer.Option(help="A part of the new model's name.")] = None,
    seed: Seed = None,
    url: ServerUrl = DEFAULT_URL,
    api_key: Key = None,
    wait: Annotated[bool, typer.Option("--watch", help="Watch it until it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload data and queue a job; its id is printed, or with --watch the new model's name."""
    with asking(url, api_key, None) as (client, _):
        job = submit(client, model, data, method, settings, objective, validation, suffix=suffix, seed=seed)
        if wait:
            _watch(client, job.id)
            return
    print_json(job) if as_json else typer.echo(job.id)


def submit(
    client: Trefoil,
    model: str,
    data: Path,
    method: str,
    settings: list[str] | None,
    objective: str | None,
    validation: Path | None,
    *,
    suffix: str | None = None,
    seed: int | None = None,
) -> Job:
    """Upload data and queue a job. Raises InvalidSetting, and TrefoilError where the server refuses it."""
    own: dict[str, Any] = {"hyperparameters": dict(map(_setting, settings or []))}
    if objective is not None:
        own["objective"] = objective
    trained = _upload(client, data)
    checked = _upload(client, validation) if validation else None
    return client.create_job(
        model, trained, {"type": method, method: own}, validation_file=checked, suffix=suffix, seed=seed
    )


@app.command("list")
def list_jobs(
    url: ServerUrl = DEFAULT_URL,
    api_key: Key = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with asking(url, api_key, None) as (client, _):
        jobs = client.jobs(limit=limit)
    if as_json:
        print_json(jobs)
        return
    table = Table(box=None)
    for title in ("job", "status", "model", "result"):
        table.add_column(title)
    for job in jobs:
        table.add_row(job.id, job.status, job.model, job.fine_tuned_model or "")
    Console().print(table)


@app.command()
def show(job_id: JobId, url: ServerUrl = DEFAULT_URL, api_key: Key = None) -> None:
    """Print all about a job, as JSON."""
    with asking(url, api_key, None) as (client, _):
        print_json(client.job(job_id))


@app.command()
def watch(job_id: JobId, url: ServerUrl = DEFAULT_URL, api_key: Key = None) -> None:
    """Follow a job to its end; exit status 1 where it does not succeed."""
    with asking(url, api_key, None) as (client, _):
        _watch(client, job_id)


@app.command()
def cancel(job_id: JobId, url: ServerUrl = DEFAULT_URL, api_key: Key = None) -> None:
    """End a job."""
    with asking(url, api_key, None) as (client, _):
        typer.echo(client.cancel_job(job_id).status)


@app.command()
def pause(job_id: JobId, url: ServerUrl = DEFAULT_URL, api_key: Key = None) -> None:
    """Let a job write a checkpoint and wait."""
    with asking(url, api_key, None) as (client, _):
        typer.echo(client.pause_job(job_id).status)


@app.command()
def resume(job_id: JobId, url: ServerUrl = DEFAULT_URL, api_key: Key = None) -> None:
    """Go on with a paused job."""
    with asking(url, api_key, None) as (client, _):
        typer.echo(client.resume_job(job_id).status)


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidSetting("--set", text, "a hyperparameter such as n_epochs=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _upload(client: Trefoil, path: Path) -> str:
    try:
        with path.open("rb") as content:
            return client.upload_file(content, path.name).id
    except OSError as error:
        raise InvalidSetting("DATA", str(path), f"a readable file: {error.strerror}") from error


def _watch(client: Trefoil, job_id: str) -> None:
    """Follow it, and print the new model's name. Raises JobFailed."""
    typer.echo(follow(client, job_id).fine_tuned_model)


def follow(client: Trefoil, job_id: str) -> Job:
    """A bar and the loss while it runs; its messages as they come. Raises JobFailed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("waiting", total=None)
        for event in client.follow(job_id):
            data = event.data or {}
            if event.type == "metrics":
                bar.update(task, completed=data.get("step"), total=data.get("total_steps"), description=_numbers(data))
            else:
                bar.console.print(event.message, style=_style(event), highlight=False)
    job = client.job(job_id)
    if job.status != "succeeded":
        raise JobFailed(job.id, job.status, (job.error and job.error.message) or "")
    return job


def _numbers(data: dict[str, Any]) -> str:
    names = ("train_loss", "reward", "rewards/margins", "kl", "tokens_per_second")
    return "  ".join(f"{name} {data[name]:.4g}" for name in names if isinstance(data.get(name), int | float))


def _style(event: JobEvent) -> str:
    return {"error": "red", "warn": "yellow"}.get(event.level, "dim")
