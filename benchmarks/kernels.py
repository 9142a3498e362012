"""Each kernel beside its reference and torch's own, on this machine, now. A wrong result is no time: the run ends.

    python benchmarks/kernels.py [linear] [attention] [limits] [--threads 2] [--rounds 7]

Candidates of a row run in turn, round after round; printed are medians, what the first reaches of the best other, and
how many cores others used meanwhile. The weights of a round are larger together than any cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from neighbours import Neighbours
from trefoil_kernels import float8, linear, low_bit, packed_attention, packed_linear, paged_attention
from trefoil_kernels.cpu.build import find_compiler
from trefoil_kernels.cpu.library import native
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import new_pages
from trefoil_kernels.paged_attention import PageTable

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PEAK = Path(__file__).with_name("peak.c")
WORKING_SET = 64 << 20
SHAPES = {"0.5B up": (4864, 896), "0.5B down": (896, 4864)}
ROWS = (1, 4, 16, 128)

ROUNDS_OTHERWISE = ("ours bf16",)

Run = Callable[[int], Tensor]
"""The candidate on the inputs of this number."""


class WrongResult(Exception):
    """A candidate that differs from the reference by more than its dtype allows."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is compared: candidates by name, ours first, and the reference's result on the inputs of number 0."""

    name: str
    dtype: torch.dtype
    wanted: Tensor
    candidates: dict[str, Run]
    num_inputs: int


@torch.inference_mode()
def compare(row: Row, rounds: int) -> None:
    """Print one row. Raises WrongResult. What rounds otherwise by intent (bfloat16 beside fewer bits) is only timed."""
    for name, run in row.candidates.items():
        if name in ROUNDS_OTHERWISE:
            continue
        error = (run(0).double() - row.wanted.double()).abs().max() / row.wanted.double().abs().max()
        if not error <= BOUNDS[row.dtype]:
            raise WrongResult(f"{row.name}: {name} is off by {error:.1e}")
    neighbours = Neighbours()
    seconds: dict[str, list[float]] = {name: [] for name in row.candidates}
    for _ in range(rounds):
        for name, run in row.candidates.items():
            started = time.perf_counter()
            for number in range(row.num_inputs):
                run(number)
            seconds[name].append((time.perf_counter() - started) / row.num_inputs)
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    ours, *others = medians.values()
    told = "  ".join(f"{name} {median * 1e6:.0f} us" for name, median in medians.items())
    print(
        f"{row.name:<40} x{min(others) / ours:.2f}  {told}  ({neighbours.cores():.2f} cores busy elsewhere)", flush=True
    )


def linear_rows() -> list[Row]:
    """Products of the 0.5B shape, weights in bfloat16, float32, 8 bits (whole and floating) and 4 bits."""
    return [
        make(name, F_, M, rows)
        for name, (F_, M) in SHAPES.items()
        for rows in ROWS
        for make in (bfloat16_row, float32_row, int8_row, float8_row, int4_row)
    ]


def bfloat16_row(name: str, F_: int, M: int, rows: int) -> Row:
    """Weights as most checkpoints have them."""
    return _product_row(name, F_, M, rows, torch.bfloat16)


def float32_row(name: str, F_: int, M: int, rows: int) -> Row:
    """Twice the bytes."""
    return _product_row(name, F_, M, rows, torch.float32)


def int8_row(name: str, F_: int, M: int, rows: int) -> Row:
    """Beside the same product in bfloat16, which it is to beat."""
    return _low_row(name, F_, M, rows, "int8", low_bit.to_int8, low_bit.pack_int8)


def float8_row(name: str, F_: int, M: int, rows: int) -> Row:
    """The same in 8-bit floats."""
    return _low_row(name, F_, M, rows, "fp8", float8.to_float8, low_bit.pack_float8)


def int4_row(name: str, F_: int, M: int, rows: int) -> Row:
    """The same in 4 bits."""
    return _low_row(name, F_, M, rows, "int4", low_bit.to_int4, low_bit.pack_int4)


def _product_row(name: str, F_: int, M: int, rows: int, dtype: torch.dtype) -> Row:
    x_TM, weights = torch.randn(rows, M).to(dtype), _weights(F_, M, dtype)
    packed = [packed_linear.pack(weight) for weight in weights]
    prepacked = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
    candidates: dict[str, Run] = {
        "ours, not packed": lambda n: linear.linear(x_TM, weights[n]),
        "oneDNN, packed": lambda n: torch.ops.mkldnn._linear_pointwise(x_TM, prepacked[n], None, "none", [], ""),
        "torch": lambda n: F.linear(x_TM, weights[n]),
    }
    if all(packed):
        candidates = {"ours": lambda n: packed[n].times(x_TM), **candidates}
    wanted = x_TM.double() @ weights[0].double().T
    return Row(f"{name} {rows} rows {_short(dtype)}", dtype, wanted, candidates, len(weights))


def _low_row(
    name: str, F_: int, M: int, rows: int, kind: str, to_low: Callable[[Tensor], Any], pack: Callable[[Tensor], Any]
) -> Row:
    x_TM, weights = torch.randn(rows, M).bfloat16(), _weights(F_, M, torch.bfloat16)
    packed, whole = [pack(weight) for weight in weights], [packed_linear.pack(weight) for weight in weights]
    restored = to_low(weights[0]).restored(torch.float64)
    candidates: dict[str, Run] = {"ours": lambda n: packed[n].times(x_TM)}
    if all(whole):
        candidates["ours bf16"] = lambda n: whole[n].times(x_TM)
    wanted = x_TM.double() @ restored.T
    return Row(f"{name} {rows} rows {kind}", torch.bfloat16, wanted, candidates, len(weights))


def attention_rows() -> list[Row]:
    """Decode over pages at the 0.5B and 110M shapes, prefill, and short texts both ways."""
    return [
        decode_row("decode 1 x 1024, 14/2 heads", 1, 1024, 14, 2),
        decode_row("decode 16 x 300, 14/2 heads", 16, 300, 14, 2),
        decode_row("decode 16 x 300, 12/12 heads", 16, 300, 12, 12),
        packed_row("prefill 512, 14/2 heads", (512,), 14, 2, Mask.CAUSAL),
        packed_row("encoder 32 x 64, 12/12 heads", (64,) * 32, 12, 12, Mask.FULL),
    ]


def decode_row(name: str, N: int, length: int, H: int, G: int, D: int = 64, S: int = 16) -> Row:
    """One query row a sequence over shuffled pages; beside it gathering and torch, which the fallback does."""
    dtype, per = torch.bfloat16, -(-length // S)
    pages = new_pages(N * per, S, G, D, dtype=dtype, device=torch.device("cpu"))
    pages.k_PSGD.normal_(), pages.v_PSGD.normal_()
    table = PageTable(torch.randperm(N * per).view(N, per), torch.full((N,), length), (length,) * N)
    q_THD, packing, scale = torch.randn(N, H, D).to(dtype), Packing((1,) * N), D**-0.5
    candidates: dict[str, Run] = {
        "ours": lambda n: paged_attention.paged_attention(q_THD, pages, table, packing, mask=Mask.CAUSAL, scale=scale),
        "gather + torch": lambda n: paged_attention._one_row_each(q_THD, pages, table, Mask.CAUSAL, scale, None),
    }
    wanted = paged_attention.reference(q_THD, pages, table, packing, mask=Mask.CAUSAL, scale=scale)
    return Row(name, dtype, wanted, candidates, 4)


def packed_row(name: str, lens: tuple[int, ...], H: int, G: int, mask: Mask, D: int = 64) -> Row:
    """Whole sequences in float32; beside it torch's SDPA by each backend that runs here."""
    q, k, v = (torch.randn(sum(lens), heads, D) for heads in (H, G, G))
    packing, scale = Packing(lens), D**-0.5
    candidates: dict[str, Run] = {
        "ours": lambda n: packed_attention.packed_attention(q, k, v, packing, mask=mask, scale=scale)
    }
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        candidates[f"SDPA {backend.name.lower()}"] = _sdpa(backend, q, k, v, lens, mask, scale)
    wanted = packed_attention.reference(q, k, v, packing, mask=mask, scale=scale)
    return Row(name, torch.float32, wanted, candidates, 4)


def _sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, lens: Sequence[int], mask: Mask, scale: float) -> Run:
    group = q.shape[1] // k.shape[1]

    def run(number: int) -> Tensor:
        batch = [x.view(len(lens), lens[0], -1, x.shape[-1]).transpose(1, 2) for x in (q, k, v)]
        wide = [batch[0], *(x.repeat_interleave(group, 1) for x in batch[1:])]
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*wide, is_causal=mask.is_causal, scale=scale)
        return out.transpose(1, 2).reshape(q.shape)

    return run


def limits(threads: int) -> None:
    """What this machine reads and multiplies at best."""
    big, square = torch.ones(WORKING_SET), torch.ones(2048, 2048)
    read_s = min(_seconds(big.sum) for _ in range(5))
    print(f"limits, {threads} threads: read {big.nbytes / read_s / 1e9:.1f} GB/s", end="")
    product_s = min(_seconds(lambda: square @ square) for _ in range(5))
    print(f", float32 products {2 * 2048**3 / product_s / 1e9:.0f} of {peak(threads):.0f} GFLOP/s")


def peak(threads: int) -> float:
    """GFLOP/s in float32 that the cores do at most, by a loop over registers. Raises NativeUnavailable."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            find_compiler(),
            "-O3",
            "-march=native",
            "-ffp-contract=fast",
            "-fopenmp",
            PEAK,
            "-o",
            f"{scratch}/peak",
        ]
        subprocess.run(command, check=True)
        ran = subprocess.run(
            [f"{scratch}/peak"],
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=True,
        )
    return float(ran.stdout)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _weights(F_: int, M: int, dtype: torch.dtype) -> list[Tensor]:
    return [torch.randn(F_, M).to(dtype) for _ in range(WORKING_SET // (F_ * M * dtype.itemsize) + 1)]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


PARTS: dict[str, Callable[[], list[Row]]] = {"linear": linear_rows, "attention": attention_rows}


def main() -> None:
    """Compare what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "limits", []], default=[])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    library = native()
    print(f"native kernels: {library.variant if library else 'none'}; {given.threads} threads")
    try:
        limits(given.threads)
        for part in given.parts or PARTS:
            for row in PARTS.get(part, list)():
                compare(row, given.rounds)
    except WrongResult as error:
        sys.exit(f"no times, as a result is wrong: {error}")


if __name__ == "__main__":
    main()
