"""`trefoil plan`: memory and budgets, worked out here; needs no server."""

from typing import Annotated, Literal

import typer

from trefoil.cli.flags import AsJson, print_json
from trefoil.errors import InvalidSetting
from trefoil.planning import LAWS, CacheShape, cache_plan
from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import ModelFolder, find_folder

app = typer.Typer(no_args_is_help=True, help="Sizes before anything is bought.")


@app.command("kv-cache")
def kv_cache(
    model: Annotated[str, typer.Argument(help="A model's folder or Hub id.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens of each.")] = 2048,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "int8"],
        typer.Option(help="Of the cache."),
    ] = "bfloat16",
    page_size: Annotated[int, typer.Option(min=1, max=1024, help="Slots of a page.")] = 16,
    as_json: AsJson = False,
) -> None:
    """What the KV cache of a model takes."""
    try:
        shape = CacheShape.read(ModelFolder.read(find_folder(model)).config)
    except CheckpointError as error:
        raise InvalidSetting("MODEL", model, f"a folder that can be planned for: {error}") from error
    plan = cache_plan(shape, batch_size=batch_size, seq_len=seq_len, dtype=dtype, page_size=page_size)
    print_json(plan) if as_json else _show(dict(plan))


@app.command()
def scaling(
    compute_flops: Annotated[
        float | None, typer.Option(min=1, max=1e40, help="Operations of a whole training.")
    ] = None,
    parameters: Annotated[float | None, typer.Option(min=1, max=1e40, help="Of the model.")] = None,
    tokens: Annotated[float | None, typer.Option(min=1, max=1e40, help="To train on.")] = None,
    law: Annotated[Literal["kaplan", "chinchilla"], typer.Option(help="Whose.")] = "chinchilla",
    as_json: AsJson = False,
) -> None:
    """What an amount of arithmetic, of parameters or of tokens asks of the other two."""
    given = (compute_flops, parameters, tokens)
    if sum(amount is not None for amount in given) != 1:
        raise typer.BadParameter("give exactly one of --compute-flops, --parameters and --tokens")
    plan = LAWS[law](*given)
    print_json(plan) if as_json else _show(dict(plan))


def _show(plan: dict[str, int | float | str]) -> None:
    width = max(map(len, plan))
    for name, value in plan.items():
        typer.echo(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
