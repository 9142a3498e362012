"""`trefoil serve`: every setting as a flag and a TREFOIL_<FLAG> variable."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from trefoil.cli.flags import env
from trefoil.errors import InvalidSetting
from trefoil.settings import (
    ModelSource,
    Settings,
    default_data_dir,
    parse_bytes,
    parse_endpoint,
    parse_origin,
    parse_rates,
    read_keys,
    read_upstream_keys,
)
from trefoil.wire import WorkerSpec

app = typer.Typer()

DEMO_MODELS = ("decoder", "encoder", "encoder-sentiment", "encoder-entities", "encoder-answers", "encoder-decoder")
UPSTREAM_KEY = "TREFOIL_UPSTREAM_API_KEY"

DataDir = Annotated[
    Path | None,
    typer.Option(envvar=env("--data-dir"), help="Folder of uploads, jobs and trained models.", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar=env("--database-url"), help="sqlite:///PATH or postgresql://...; SQLite in the data folder."),
]
LogJson = Annotated[bool, typer.Option("--log-json", envvar=env("--log-json"), help="JSON logs.")]


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders or Hub ids, or name=MODEL, or another server's: name=http://host/v1[#MODEL]; none: our demos."
        ),
    ] = None,
    host: Annotated[str, typer.Option(envvar=env("--host"), help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar=env("--port"), min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    uds: Annotated[
        str | None, typer.Option(envvar=env("--uds"), help="Unix socket to listen on, instead of a port.")
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(envvar=env("--api-key"), help="Key that clients must send; may be repeated.")
    ] = None,
    api_key_file: Annotated[
        str | None, typer.Option(envvar=env("--api-key-file"), help="File with one such key a line.")
    ] = None,
    rate_limit: Annotated[
        str | None,
        typer.Option(envvar=env("--rate-limit"), help="Requests of one key, such as 60/minute or 5/second;1000/hour."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(envvar=env("--cors-origin"), help="Origin whose pages may call us; may be repeated [none]."),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(envvar=env("--device"), help="Where models run.")] = "cpu",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(envvar=env("--dtype"), help="Weights and arithmetic; auto takes the checkpoint's."),
    ] = "auto",
    quantization: Annotated[
        Literal["int8", "int4", "fp8"] | None,
        typer.Option(
            envvar=env("--quantization"), help="Fewer bits for weights: all of these on the CPU, fp8 on a GPU."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(envvar=env("--threads"), min=1, help="Compute threads of each model [the processor's cores]."),
    ] = None,
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            envvar=env("--tensor-parallel-size"), min=1, help="Processes, each on a GPU of its own, that share a model."
        ),
    ] = 1,
    max_model_len: Annotated[
        int | None, typer.Option(envvar=env("--max-model-len"), min=1, help="Most tokens of prompt and answer.")
    ] = None,
    max_num_seqs: Annotated[
        int, typer.Option(envvar=env("--max-num-seqs"), min=1, max=4096, help="Most sequences in a step.")
    ] = 64,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(
            envvar=env("--max-num-batched-tokens"), min=1, help="Token budget of a step [cpu 512, cuda 8192]."
        ),
    ] = None,
    block_size: Annotated[
        int, typer.Option(envvar=env("--block-size"), min=1, max=1024, help="Slots of a KV page.")
    ] = 16,
    kv_cache_memory: Annotated[
        str | None,
        typer.Option(envvar=env("--kv-cache-memory"), help="Memory for KV pages of each model, such as 2GiB."),
    ] = None,
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"],
        typer.Option(
            envvar=env("--kv-cache-dtype"),
            help="What KV pages hold; auto takes what the model computes in, fp8 is e4m3.",
        ),
    ] = "auto",
    memory_utilization: Annotated[
        float,
        typer.Option(
            envvar=env("--memory-utilization"), min=0.01, max=0.98, help="Share of free memory for all KV pages."
        ),
    ] = 0.5,
    enable_prefix_caching: Annotated[
        bool, typer.Option(envvar=env("--enable-prefix-caching"), help="Share pages of equal prefixes.")
    ] = True,
    served_model_name: Annotated[
        str | None, typer.Option(envvar=env("--served-model-name"), help="Name of the model, where one is served.")
    ] = None,
    max_num_queued_reqs: Annotated[
        int, typer.Option(envvar=env("--max-num-queued-reqs"), min=0, help="Waiting answers before 429.")
    ] = 256,
    max_body_size: Annotated[
        str, typer.Option(envvar=env("--max-body-size"), help="Largest request body, such as 16MiB.")
    ] = "16MiB",
    lora: Annotated[
        list[str] | None, typer.Option(envvar=env("--lora"), help="name=folder of an adapter in PEFT's format.")
    ] = None,
    max_upload_size: Annotated[
        str, typer.Option(envvar=env("--max-upload-size"), help="Largest training file, such as 512MiB.")
    ] = "512MiB",
    upstream_api_key_file: Annotated[
        str | None,
        typer.Option(
            envvar=env("--upstream-api-key-file"),
            help="File with the key of other servers, or lines NAME KEY; one key: TREFOIL_UPSTREAM_API_KEY.",
        ),
    ] = None,
    upstream_timeout: Annotated[
        float,
        typer.Option(envvar=env("--upstream-timeout"), min=0.01, help="Seconds without a byte from another server."),
    ] = 600.0,
    request_timeout: Annotated[
        float | None,
        typer.Option(envvar=env("--request-timeout"), min=0.01, help="Seconds that an answer may take [no limit]."),
    ] = None,
    body_timeout: Annotated[
        float,
        typer.Option(
            envvar=env("--body-timeout"), min=0.01, help="Seconds for a request's head, and without a byte of its body."
        ),
    ] = 30.0,
    keep_alive_timeout: Annotated[
        int, typer.Option(envvar=env("--keep-alive-timeout"), min=1, help="Seconds that idle connections stay open.")
    ] = 5,
    shutdown_timeout: Annotated[
        int, typer.Option(envvar=env("--shutdown-timeout"), min=0, help="Seconds that streams may take after SIGTERM.")
    ] = 30,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    allow_loading: Annotated[
        bool,
        typer.Option(
            "--allow-loading",
            envvar=env("--allow-loading"),
            help="Let clients load any folder of this machine or Hub id by POST /v1/models/load.",
        ),
    ] = False,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", envvar=env("--no-worker"), help="Train nothing here; see `trefoil worker`.")
    ] = False,
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(envvar=env("--otlp-traces-endpoint"), help="Where OpenTelemetry traces go, over HTTP [nowhere]."),
    ] = None,
    access_log: Annotated[bool, typer.Option(envvar=env("--access-log"), help="A log line for each request.")] = True,
    log_json: LogJson = False,
) -> None:
    """Serve models over HTTP."""
    sources = model_sources(models or [], served_model_name)
    settings = Settings(
        models=sources,
        loras=tuple(lora_source(text) for text in lora or []),
        host=host,
        port=port,
        uds=uds,
        api_keys=(
            *(key for key in api_key or [] if key),
            *(read_keys("--api-key-file", api_key_file) if api_key_file else ()),
        ),
        rate_limits=parse_rates("--rate-limit", rate_limit) if rate_limit else (),
        cors_origins=tuple(parse_origin("--cors-origin", origin) for origin in cors_origin or []),
        device=device,
        dtype=dtype,
        quantization=quantization,
        threads=threads,
        tensor_parallel_size=tensor_parallel_size,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        kv_cache_memory=parse_bytes("--kv-cache-memory", kv_cache_memory) if kv_cache_memory else None,
        kv_cache_dtype=kv_cache_dtype,
        memory_utilization=memory_utilization,
        enable_prefix_caching=enable_prefix_caching,
        max_num_queued_reqs=max_num_queued_reqs,
        max_body_size=parse_bytes("--max-body-size", max_body_size),
        max_upload_size=parse_bytes("--max-upload-size", max_upload_size),
        upstream_keys=upstream_keys(sources, upstream_api_key_file),
        upstream_timeout=upstream_timeout,
        request_timeout=request_timeout,
        body_timeout=body_timeout,
        keep_alive_timeout=keep_alive_timeout,
        shutdown_timeout=shutdown_timeout,
        otlp_traces_endpoint=(
            parse_endpoint("--otlp-traces-endpoint", otlp_traces_endpoint) if otlp_traces_endpoint else None
        ),
        access_log=access_log,
        data_dir=data_folder(data_dir),
        database_url=database_url,
        has_worker=not no_worker,
        loads_sources=allow_loading,
        log_json=log_json,
    )
    import uvloop

    from trefoil.api.server import run  # the process choice: a shell command needs no server

    raise typer.Exit(uvloop.run(run(settings)))


def upstream_keys(sources: Sequence[ModelSource], path: str | None) -> Mapping[str, str]:
    """What the servers that answer for models are sent; never a flag, which every process list would show."""
    names = [source.name for source in sources if source.is_remote]
    common = os.environ.get(UPSTREAM_KEY)
    own = read_upstream_keys("--upstream-api-key-file", path, names) if path else {}
    return {**(dict.fromkeys(names, common) if common else {}), **own}


def lora_source(text: str) -> ModelSource:
    """`name=folder`. Raises InvalidSetting."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise InvalidSetting("--lora", text, "name=folder")
    return ModelSource(name, folder)


def data_folder(given: Path | None) -> Path:
    """The data folder as an absolute path."""
    return (given or default_data_dir()).expanduser().absolute()


@app.command()
def worker(
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(envvar=env("--device"), help="Where to train.")] = "cpu",
    lease_seconds: Annotated[
        float, typer.Option(envvar=env("--lease-seconds"), min=1, help="After which a lost worker's job is another's.")
    ] = 30.0,
    checkpoint_seconds: Annotated[
        float, typer.Option(envvar=env("--checkpoint-seconds"), min=0, help="Between two saved states of a job.")
    ] = 10.0,
    log_json: LogJson = False,
) -> None:
    """Train jobs of the servers that share this database and data folder."""
    settings = Settings(models=(), data_dir=data_folder(data_dir), database_url=database_url)
    spec = WorkerSpec(
        database=settings.database,
        data_dir=str(settings.data_dir),
        device=device,
        lease_s=lease_seconds,
        checkpoint_s=checkpoint_seconds,
        log_json=log_json,
    )
    become("trefoil.training.worker", msgspec.json.encode(spec))


def become(module: str, spec: bytes) -> None:
    """Replace this process by another of ours, whose spec comes by standard input: this one stays free of torch."""
    readable, writable = os.pipe()
    os.write(writable, spec)
    os.close(writable)
    os.dup2(readable, 0)
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - our own interpreter


def model_sources(given: list[str], served_name: str | None) -> tuple[ModelSource, ...]:
    """What to serve; the bundled demo models where nothing is given."""
    demo = files("trefoil_models") / "demo"
    sources = [ModelSource.parse(text) for text in given] or [
        ModelSource(f"demo-{name}", str(demo / name)) for name in DEMO_MODELS
    ]
    if served_name is None:
        return tuple(sources)
    if len(sources) > 1:
        raise InvalidSetting("--served-model-name", served_name, "left out where several models are served")
    return (ModelSource(served_name, sources[0].source),)
