"""The rows of the CPU table: trefoil beside each installed peer, over HTTP, same weights and requests, round about.

    python benchmarks/serving_peers.py install [PEER ...]           each into an environment of its own; see peers.py
    python benchmarks/serving_peers.py run [ROW ...] [--rounds 3]   who is not installed is left out with a line

All servers of a row are up at once, on the same two threads, and asked in turn; each request of each round has token
ids of its own, so that nothing is found in a cache but what the row means to share.
"""

import argparse
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import httpx

import load
import peers
from neighbours import Neighbours
from peers import HOME, LLAMA_SOURCE, LeftOut
from report import Summary
from served import serve
from serving import CACHE, KV_CACHE_MEMORY, made, spread
from workload import Span, Workload

HERE = Path(__file__).parent
START_LIMIT_S = 180.0
ONE_BY_ONE = ("trefoil", "llama.cpp", "vllm", "transformers generate")
TOGETHER = ("trefoil", "llama.cpp", "vllm", "transformers continuous")
EIGHT_BITS = ("trefoil int8", "llama.cpp q8_0", "ctranslate2 int8")
FLOAT32 = ("trefoil float32", "ctranslate2 float32")  # which has no bfloat16 on such a CPU


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what is asked of which shape, what counts, and who takes part."""

    shape: str
    workload: Workload
    unit: str
    value: Callable[[Summary], float | None]
    peers: tuple[str, ...] = TOGETHER
    is_better_high: bool = True


def decode_rate(summary: Summary) -> float | None:
    """Tokens a second of one stream after its first token."""
    return None if summary.tpot.mean is None else 1e3 / summary.tpot.mean


def output_rate(summary: Summary) -> float:
    return summary.output_per_s


def prompt_rate(summary: Summary) -> float | None:
    """Prompt tokens a second until the first answer."""
    return None if summary.ttft.mean is None else summary.input_tokens / summary.num_ok / summary.ttft.mean * 1e3


ONE = Workload(num_prompts=1, max_concurrency=1, ignore_eos=True, input_len=Span(128, 128), output_len=Span(128, 128))
MIXED = Workload(num_prompts=16, max_concurrency=16, ignore_eos=True)
ROWS = {
    "decode": Row("qwen2.5-0.5b", ONE, "tokens/s", decode_rate, ONE_BY_ONE),
    "decode-8": Row("qwen2.5-0.5b", ONE, "tokens/s", decode_rate, EIGHT_BITS),
    "decode-4": Row("qwen2.5-0.5b", ONE, "tokens/s", decode_rate, ("trefoil int4", "llama.cpp q4_0")),
    "decode-32": Row("qwen2.5-0.5b", ONE, "tokens/s", decode_rate, FLOAT32),
    "first-token": Row(
        "qwen2.5-0.5b",
        replace(ONE, output_len=Span(2, 2)),
        "ms",
        lambda summary: summary.ttft.median,
        ONE_BY_ONE,
        is_better_high=False,
    ),
    "concurrent-110m": Row("llama-110m", MIXED, "tokens/s", output_rate),
    "concurrent-110m-8": Row("llama-110m", MIXED, "tokens/s", output_rate, EIGHT_BITS),
    "concurrent-110m-32": Row("llama-110m", MIXED, "tokens/s", output_rate, FLOAT32),
    "concurrent-0.5b": Row("qwen2.5-0.5b", MIXED, "tokens/s", output_rate),
    "prefill": Row(
        "qwen2.5-0.5b",
        replace(ONE, input_len=Span(2048, 2048), output_len=Span(2, 2)),
        "prompt tokens/s",
        prompt_rate,
        ONE_BY_ONE,
    ),
    "prefix": Row(
        "llama-110m",
        replace(MIXED, shared_prefix=1024, input_len=Span(32, 32), output_len=Span(64, 64)),
        "tokens/s",
        output_rate,
    ),
}


@contextmanager
def trefoil(folder: Path, precision: str | None) -> Iterator[str]:
    flags = [] if precision is None else ["--dtype" if precision == "float32" else "--quantization", precision]
    with serve([f"m={folder}", "--kv-cache-memory", KV_CACHE_MEMORY, *flags]) as served:
        served.wait_for("event=model_ready")
        yield served.url


@contextmanager
def llama_cpp(folder: Path, kind: str | None) -> Iterator[str]:
    """One key-value cache for all 16, which is the better of its layouts for mixed lengths."""
    program = LLAMA_SOURCE / "build" / "bin" / "llama-server"
    if not program.is_file():
        raise LeftOut("not installed")
    port = free_port()
    words = ["-m", gguf(folder, kind or "bf16"), "--port", port, "-t", 2, "-tb", 2, "-np", 16, "-kvu", "-c", 24576]
    with server([program, *words, "--no-webui", "--alias", "m", "--cache-ram", 0], port, {}) as url:
        yield url


@contextmanager
def vllm(folder: Path, _: str | None) -> Iterator[str]:
    program = peers.python_of("vllm").with_name("vllm")
    port = free_port()
    words = ["serve", folder, "--served-model-name", "m", "--dtype", "bfloat16", "--max-num-seqs", 32, "--port", port]
    # by itself it keeps one of two cores for its front end
    settings = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "0-1"}
    with server([program, *words, "--host", "127.0.0.1"], port, settings) as url:
        yield url


@contextmanager
def library(name: str, folder: Path, kind: str | None) -> Iterator[str]:
    """A library behind a server of a page, in an environment of its own."""
    port = free_port()
    with server(
        [peers.python_of(name), HERE / "serving_engines" / f"with_{name}.py", folder, port, kind], port, {}
    ) as url:
        yield url


PEERS = {
    "trefoil": trefoil,
    "llama.cpp": llama_cpp,
    "vllm": vllm,
    "transformers": partial(library, "transformers"),
    "ctranslate2": partial(library, "ctranslate2"),
}


@contextmanager
def server(command: Sequence[object], port: int, settings: dict[str, str]) -> Iterator[str]:
    """Somebody's server from its start, once it answers, to its end. Raises LeftOut where it does not come up."""
    url, log = f"http://127.0.0.1:{port}", HOME / f"{Path(str(command[0])).name}.log"
    surroundings = {**os.environ, "HF_HUB_OFFLINE": "1", **settings}
    surroundings["PATH"] = f"{Path(str(command[0])).parent}:{surroundings['PATH']}"
    with log.open("w") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out, env=surroundings, cwd=HOME)
    try:
        limit_s = time.perf_counter() + START_LIMIT_S
        while not is_up(url):
            if process.poll() is not None or time.perf_counter() > limit_s:
                raise LeftOut(f"it did not come up; see {log}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2.0, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gguf(folder: Path, kind: str) -> Path:
    """The folder's weights for llama.cpp, written on first use; low bits for every matrix, the head's too."""
    plain, wanted = (folder.with_name(f"{folder.name}-{name}.gguf") for name in ("bf16", kind))
    if not plain.is_file():
        python = HOME / "llama.cpp" / "bin" / "python"
        subprocess.run([python, HERE / "gguf.py", LLAMA_SOURCE, folder, plain], check=True, stdout=subprocess.DEVNULL)
    if not wanted.is_file():
        program = LLAMA_SOURCE / "build" / "bin" / "llama-quantize"
        subprocess.run([program, "--pure", plain, wanted, kind, "2"], check=True, stdout=subprocess.DEVNULL)
    return wanted


def run(names: Sequence[str], rounds: int) -> None:
    """Rows of one shape and the same peers share their servers, which all stay up."""
    for (shape, taking_part), members in groupby(names, key=lambda name: (ROWS[name].shape, ROWS[name].peers)):
        folder = made(shape, CACHE, "bfloat16").resolve()
        with ExitStack() as stack:
            urls: dict[str, str] = {}
            for peer in taking_part:
                kind, _, precision = peer.partition(" ")
                try:
                    urls[peer] = stack.enter_context(PEERS[kind](folder, precision or None))
                except LeftOut as why:
                    print(f"{peer} is left out: {why}", flush=True)
            for name in members:
                tell(name, ROWS[name], measured(name, urls, rounds))


def measured(name: str, urls: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """One row's rounds, every server in turn; a request to warm up comes before the first."""
    row = ROWS[name]
    found: dict[str, list[float]] = {peer: [] for peer in urls}
    for url in urls.values():  # by connections of its own: llama.cpp does not keep them
        warmup = replace(row.workload, num_prompts=1, output_len=Span(8, 8), content_seed=-1)
        load.measure(load.Target(url, "m"), warmup, num_warmups=0)
    for number in range(rounds):
        own = replace(row.workload, content_seed=1000 * number + list(ROWS).index(name))
        for peer, url in urls.items():
            neighbours = Neighbours()
            answered = load.measure(load.Target(url, "m"), own, num_warmups=0)
            if answered.failures:
                print(f"  {name} {number}: {peer} failed: {answered.failures[0]}", flush=True)
            elif (value := row.value(answered.summary)) is not None:
                found[peer].append(value)
                print(f"  {name} {number}: {peer} {value:.1f} ({neighbours.cores():.2f} cores elsewhere)", flush=True)
    return found


def tell(name: str, row: Row, found: dict[str, list[float]]) -> None:
    """Medians with least and greatest, and what trefoil reaches of the best other."""
    found = {peer: own for peer, own in found.items() if own}
    print(f"{name}: {row.shape}, {row.unit}: " + "; ".join(f"{peer} {spread(own)}" for peer, own in found.items()))
    medians = {peer: statistics.median(own) for peer, own in found.items()}
    others = [value for peer, value in medians.items() if not peer.startswith("trefoil")]
    ours = next((value for peer, value in medians.items() if peer.startswith("trefoil")), None)
    if others and ours is not None:
        ratio = ours / max(others) if row.is_better_high else min(others) / ours
        print(f"{name}: trefoil / the best other = {ratio:.2f}", flush=True)


def main() -> None:
    """Install or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["install", "run"])
    parser.add_argument("names", nargs="*", help="peers, or rows")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.what == "install":
        peers.make(given.names or [name for name in PEERS if name in peers.PACKAGES])
    else:
        run(given.names or list(ROWS), given.rounds)


if __name__ == "__main__":
    main()
