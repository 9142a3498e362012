"""One frozen Settings, finished at birth. Only `cli` fills it, from flags and TREFOIL_<FLAG> variables."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from limits import RateLimitItem, parse_many

from trefoil.errors import InvalidSetting

UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
DEFAULT_ROWS = {"cpu": 512, "cuda": 8192}
REMOTE = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model to serve: the name clients use, and a folder, a Hub id or the address of a server that answers for it."""

    name: str
    source: str

    @classmethod
    def parse(cls, text: str) -> "ModelSource":
        """`name=folder`, or a folder or Hub id whose last part is the name; another server's model always has one."""
        if text.startswith(REMOTE):
            raise InvalidSetting("MODEL", _without_user(text), "name=http://host/v1 or name=http://host/v1#MODEL")
        name, equals, source = text.partition("=")
        if not equals:
            return cls(text.rstrip("/").rpartition("/")[2] if text.startswith(("/", ".", "~")) else text, text)
        if not name or not source:
            raise InvalidSetting("MODEL", text, "a folder, a Hub id or name=folder")
        if source.startswith(REMOTE):
            _check_address(name, source)
        return cls(name, source)

    @property
    def is_remote(self) -> bool:
        """Does another server answer for it?"""
        return self.source.startswith(REMOTE)

    @property
    def address(self) -> str:
        """Where another server's routes begin, which end in /v1 as a rule."""
        return self.source.partition("#")[0].rstrip("/")

    @property
    def upstream_name(self) -> str | None:
        """What the other server calls the model; None: it has but one."""
        return self.source.partition("#")[2] or None


def _check_address(name: str, source: str) -> None:
    """Raise InvalidSetting unless it is plainly an address; a password in it would stand in every process list."""
    parts = urlsplit(source)
    try:
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or parts.query or "@" in parts.netloc:
        allowed = "http(s)://host[:port]/v1[#MODEL], without a query; a key stands in TREFOIL_UPSTREAM_API_KEY"
        raise InvalidSetting("MODEL", f"{name}={_without_user(source)}", allowed)


def _without_user(address: str) -> str:
    return re.sub(r"//[^/]*@", "//", address)


def default_data_dir() -> Path:
    """Where a user's data belongs (XDG base directories)."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "trefoil"


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server runs. Sizes in bytes, times in seconds."""

    models: tuple[ModelSource, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    loras: tuple[ModelSource, ...] = ()
    api_keys: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "auto"
    quantization: str | None = None
    threads: int | None = None
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    kv_cache_memory: int | None = None
    kv_cache_dtype: str = "auto"
    memory_utilization: float = 0.5
    enable_prefix_caching: bool = True
    max_num_queued_reqs: int = 256
    max_body_size: int = 16 * 2**20
    max_upload_size: int = 512 * 2**20
    rate_limits: tuple[RateLimitItem, ...] = ()
    cors_origins: tuple[str, ...] = ()
    upstream_keys: Mapping[str, str] = field(default_factory=dict)
    """What is sent to the servers that answer for models, by our names of these."""
    upstream_timeout: float = 600.0
    request_timeout: float | None = None
    body_timeout: float = 30.0
    keep_alive_timeout: int = 5
    shutdown_timeout: int = 30
    otlp_traces_endpoint: str | None = None
    access_log: bool = True
    data_dir: Path = field(default_factory=default_data_dir)
    database_url: str | None = None
    has_worker: bool = True
    loads_sources: bool = False
    log_json: bool = False

    @property
    def database(self) -> str:
        """Where files, jobs and models are written down; SQLite in the data folder unless a URL says otherwise."""
        return self.database_url or f"sqlite:///{self.data_dir / 'trefoil.db'}"

    @property
    def rows_per_step(self) -> int:
        """The token budget of a step; never fewer than one row for each sequence."""
        return self.max_num_batched_tokens or max(DEFAULT_ROWS[self.device], self.max_num_seqs)

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise InvalidSetting("MODEL", name, "names that differ; use name=folder")
        if self.quantization is not None and self.device == "cpu" and self.dtype == "float16":
            raise InvalidSetting("--quantization", self.quantization, "on a CPU with --dtype auto, bfloat16 or float32")
        if self.quantization not in (None, "fp8") and self.device != "cpu":
            raise InvalidSetting(
                "--quantization", str(self.quantization), "fp8 with this --device; int8, int4 on a CPU"
            )
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidSetting(
                "--max-num-batched-tokens",
                str(self.max_num_batched_tokens),
                f"at least --max-num-seqs, which is {self.max_num_seqs}",
            )


def parse_bytes(flag: str, text: str) -> int:
    """`2GiB`, `512M`, `1000000`: a number of bytes. Raises InvalidSetting naming the flag."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    unit = match and UNITS.get(match[2] if match[2] in UNITS else match[2].removesuffix("b"))
    if not match or not unit or float(match[1]) <= 0:
        raise InvalidSetting(flag, text, "a size such as 512MiB, 2GiB or 1000000")
    return int(float(match[1]) * unit)


def parse_rates(flag: str, text: str) -> tuple[RateLimitItem, ...]:
    """`60/minute` or `10/second;1000/hour`: limits that hold together. Raises InvalidSetting naming the flag."""
    try:
        rates = tuple(parse_many(text))
    except ValueError:
        rates = ()
    if not rates or any(rate.amount < 1 for rate in rates):
        raise InvalidSetting(flag, text, "a rate such as 60/minute or 10/second;1000/hour")
    return rates


def parse_origin(flag: str, text: str) -> str:
    """`https://app.example` or `*`: where pages that may call us come from. Raises InvalidSetting naming the flag."""
    parts = urlsplit(text)
    if text != "*" and (parts.scheme not in ("http", "https") or text != f"{parts.scheme}://{parts.netloc}"):
        raise InvalidSetting(flag, text, "* or an origin such as https://app.example, without a path")
    return text


def parse_endpoint(flag: str, text: str) -> str:
    """An address that takes HTTP. Raises InvalidSetting naming the flag."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InvalidSetting(flag, text, "an address such as http://collector:4318/v1/traces")
    return text


def read_keys(flag: str, path: str) -> tuple[str, ...]:
    """The keys in a file, one a line. Raises InvalidSetting."""
    keys = tuple(_key_lines(flag, path))
    if not keys:
        raise InvalidSetting(flag, path, "a file with at least one key; without any, the server would be open")
    return keys


def read_upstream_keys(flag: str, path: str, names: Sequence[str]) -> dict[str, str]:
    """The keys for the servers that answer for `names`: `KEY` for all, or `NAME KEY`, one a line.

    Raises InvalidSetting; what stands in the file is not told.
    """
    common: str | None = None
    own: dict[str, str] = {}
    for line in _key_lines(flag, path):
        match line.split():
            case [key] if common is None:
                common = key
            case [name, key] if name in names and name not in own:
                own[name] = key
            case _:
                raise InvalidSetting(
                    flag, path, "a file with lines `KEY`, once, or `NAME KEY`, NAME being one of MODEL"
                )
    return {**({} if common is None else dict.fromkeys(names, common)), **own}


def _key_lines(flag: str, path: str) -> list[str]:
    """What stands in the file; empty lines and what follows # are nothing."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(flag, path, "a readable text file with one key a line") from error
    return [told for line in lines if (told := line.partition("#")[0].strip())]
