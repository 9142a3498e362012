"""One server with two tiny models for the whole session, clients for it, and transformers' view of the same folders."""

from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path

import httpx
import openai
import pytest
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import tiny
from e2e.serving import Server, serving_soundly

MODELS = {"a": "llama", "b": "gpt2"}
FLAGS = ("--dtype", "float32", "--max-num-seqs", "8", "--max-num-queued-reqs", "300", "--kv-cache-memory", "64MiB")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints that the session's server serves, by model name."""
    root = tmp_path_factory.mktemp("models")
    return {name: tiny.checkpoint(root / name, family) for name, family in MODELS.items()}


@pytest.fixture(scope="session")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The session's server."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    with serving_soundly(log, *(f"{name}={folder}" for name, folder in folders.items()), *FLAGS) as running:
        yield running


@pytest.fixture(scope="session")
def oracle(folders: dict[str, Path]) -> Callable[[str], PreTrainedModel]:
    """transformers' model of a served name."""
    return cache(lambda name: tiny.oracle(folders[name]))


@pytest.fixture(scope="session")
def words(folders: dict[str, Path]) -> PreTrainedTokenizerFast:
    """transformers' tokenizer of the served folders; it is one and the same."""
    return AutoTokenizer.from_pretrained(folders["a"])


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The unmodified SDK."""
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    """The unmodified asynchronous SDK."""
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0, timeout=60) as sdk:
        yield sdk


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """Plain HTTP."""
    with httpx.Client(base_url=server.url, timeout=60) as plain:
        yield plain
