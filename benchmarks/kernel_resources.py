"""Compile every variant of every kernel for chips that are not there and print what each needs (docs/kernels.md).

    python benchmarks/kernel_resources.py [--chip 80 --chip 90 --chip gfx942] [--only packed]

Ends with an error where a variant spills registers, misses the instructions its chip has for it, or does not fit.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpu_compiler import Built, compiling_for
from trefoil_kernels import (
    gated_act,
    grouped_linear,
    layer_norm,
    linear,
    packed_attention,
    page_write,
    paged_attention,
    rms_norm,
    rotary,
    sample,
    token_logprobs,
)
from trefoil_kernels.bias import Alibi, Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing

BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True, slots=True)
class Variant:
    """Something that launches kernels, and what to call it."""

    name: str
    run: Callable[[], None]


def ones(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.ones(shape, dtype=dtype, requires_grad=True)


def row_kernels() -> Iterator[Variant]:
    for width in (64, 128, 896, 4096, 8192):
        x, w = ones(3, width), ones(width)
        yield Variant(f"rms_norm {width}", lambda x=x, w=w: rms_norm.on_triton(x, None, w, 1e-5)[0].sum().backward())
        yield Variant(f"add_rms_norm {width}", lambda x=x, w=w: rms_norm.on_triton(x, x, w, 1e-5)[0].sum().backward())
        yield Variant(f"layer_norm {width}", lambda x=x, w=w: layer_norm.on_triton(x, w, w, 1e-5).sum().backward())
    for name in ("silu", "gelu", "gelu_new", "quick_gelu", "relu", "tanh"):
        x = ones(3, 11008)
        yield Variant(f"gated_act {name}", lambda x=x, n=name: gated_act.on_triton(x, x, n).sum().backward())
    for F_, M in ((4096, 4096), (4096, 14336), (151936, 896)):
        weight_FM = torch.empty(F_, M, dtype=BF16)
        yield Variant(
            f"one row {F_}x{M}", lambda w=weight_FM: linear.on_triton(torch.ones(1, w.shape[1], dtype=BF16), w)
        )
    for rows, E, F_, M in ((8, 128, 1536, 2048), (16, 8, 28672, 4096), (600, 8, 4096, 14336)):
        args = rows, torch.empty(E, F_, M, dtype=BF16)
        yield Variant(f"grouped {rows}x4 of {E}x{F_}x{M}", lambda a=args: run_grouped(*a))
    for G, D in ((2, 64), (8, 128), (32, 128)):
        pages = page_write.new_pages(2, 16, G, D, dtype=BF16, device=torch.device("cpu"))
        x = torch.ones(3, G, D, dtype=BF16)
        yield Variant(f"page_write {G}x{D}", lambda p=pages, x=x: page_write.on_triton(p, x, x, torch.arange(3)))


def run_grouped(rows: int, weights_EFM: Tensor) -> None:
    """Four weights a row."""
    num_weights, _, width = weights_EFM.shape
    choice_P, x_RM = torch.arange(4 * rows) % num_weights, torch.ones(rows, width, dtype=weights_EFM.dtype)
    ordered = grouped_linear.in_order(choice_P, num_weights, x_RM.dtype)
    grouped_linear.grouped_linear(x_RM, weights_EFM, choice_P, ordered)


def rotary_kernels() -> Iterator[Variant]:
    for D, R, run in ((64, 64, 32), (128, 128, 64), (80, 32, 16), (128, 64, 1), (128, 128, 32)):
        pages, q, k = (
            page_write.new_pages(2, 16, 8, D, dtype=BF16, device=torch.device("cpu")),
            ones(3, 32, D),
            ones(3, 8, D),
        )
        turn, kind = rotary.Turn(torch.ones(3, R // 2), torch.ones(3, R // 2), run), f"{D}/{R}/{run}"
        yield Variant(f"rotary {kind}", lambda q=q, t=turn: rotary.on_triton(q, t))
        yield Variant(
            f"rotary_page_write {kind}",
            lambda p=pages, q=q, k=k, t=turn: page_write.rotary_on_triton(p, q, k, k, t, torch.arange(3)),
        )


def vocabulary_kernels() -> Iterator[Variant]:
    for dtype in (BF16, FP32):
        hidden, head = ones(3, 4096, dtype=dtype), ones(512, 4096, dtype=dtype)
        yield Variant(
            f"token_logprobs {str(dtype)[6:]}",
            lambda h=hidden, w=head: (
                token_logprobs.on_triton(h, w, torch.zeros(3, dtype=torch.int64))[0].sum().backward()
            ),
        )
    one_N = torch.ones(2)
    yield Variant("sample", lambda: sample.on_triton(torch.ones(2, 128256), one_N, one_N.int(), one_N, one_N, one_N))


def biases(heads: int) -> dict[str, Bias | None]:
    table_BH = torch.ones(32, heads, requires_grad=True)
    relative = RelativeBias(table_BH, 128, is_bidirectional=True)
    return {"": None, "alibi": Alibi(torch.ones(heads)), "relative": relative}


def packed() -> Iterator[Variant]:
    for D in (64, 96, 128, 256):
        for dtype in (BF16, torch.float16, FP32):
            for label, mask in (("causal", Mask.CAUSAL), ("full", Mask.FULL), ("window", Mask(window=4096))):
                for bias_name, bias in biases(4).items():
                    if bias is not None and (D not in (64, 128) or dtype != BF16 or label == "window"):
                        continue  # no family has them
                    if dtype != BF16 and label != "causal":
                        continue  # the same code as bf16
                    name = f"packed {D} {str(dtype)[6:]} {label} {bias_name}".rstrip()
                    yield Variant(name, lambda D=D, t=dtype, m=mask, b=bias: run_packed(D, t, m, b))


def run_packed(D: int, dtype: torch.dtype, mask: Mask, bias: Bias | None) -> None:
    qkv = [ones(9, n, D, dtype=dtype) for n in (4, 2, 2)]
    packed_attention.on_triton(*qkv, Packing((9,)), mask=mask, scale=0.1, bias=bias).sum().backward()


def paged() -> Iterator[Variant]:
    for H, G, D in ((14, 2, 64), (32, 8, 128), (32, 32, 128), (12, 12, 96), (71, 1, 64), (8, 1, 256)):
        for label, rows in (("decode", 1), ("chunks", 7)):
            for kind, mask in (("", Mask.CAUSAL), ("window", Mask(window=4096)), ("cross", Mask.FULL)):
                name = f"paged {label} {H}/{G}x{D} {kind}".rstrip()
                yield Variant(name, lambda a=(rows, H, G, D), m=mask: run_paged(*a, BF16, m, None))
            yield Variant(
                f"paged {label} {H}/{G}x{D} float32", lambda a=(rows, H, G, D): run_paged(*a, FP32, Mask.CAUSAL, None)
            )
    for page_dtype in (torch.float8_e5m2, torch.float16):
        for label, rows in (("decode", 1), ("chunks", 7)):
            name = f"paged {label} 32/8x128 over {page_dtype}"
            yield Variant(
                name, lambda r=rows, p=page_dtype: run_paged(r, 32, 8, 128, BF16, Mask.CAUSAL, None, page_dtype=p)
            )
    for label, rows in (("decode", 1), ("chunks", 7)):
        for bias_name, bias in list(biases(8).items())[1:]:
            yield Variant(
                f"paged {label} 8/8x64 {bias_name}", lambda r=rows, b=bias: run_paged(r, 8, 8, 64, BF16, Mask.CAUSAL, b)
            )


@torch.no_grad()
def run_paged(
    rows: int,
    H: int,
    G: int,
    D: int,
    dtype: torch.dtype,
    mask: Mask,
    bias: Bias | None,
    *,
    page_dtype: torch.dtype | None = None,
) -> None:
    pages = page_write.new_pages(400, 16, G, D, dtype=page_dtype or dtype, device=torch.device("cpu"))
    table = paged_attention.PageTable(torch.zeros(1, 400, dtype=torch.int64), torch.tensor([6000]), (6000,))
    q_THD = torch.ones(rows, H, D, dtype=dtype)
    paged_attention.on_triton(q_THD, pages, table, Packing((rows,)), mask=mask, scale=0.1, bias=bias)


def complaint(chip: int | str, variant: str, kernel: Built) -> str | None:
    """What is wrong with a compiled kernel."""
    if kernel.spills:
        return "spills"
    is_matmul = variant.startswith(("packed", "paged", "token_logprobs", "grouped"))
    is_matmul = is_matmul and kernel.name not in ("_join", "_one_pair")
    if isinstance(chip, int) and is_matmul and "float32" not in variant and not kernel.count(r"\bHG?MMA\b"):
        return "no matmul instruction"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chip", action="append", default=[])
    parser.add_argument("--only", default="", help="variants whose name begins so")
    asked = parser.parse_args()
    chips = [int(chip) if chip.isdigit() else chip for chip in asked.chip] or [80, 90, "gfx942"]
    print("| chip | variant | kernel | registers | spills | shared KiB | HGMMA | HMMA | TMA | cp.async 16 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    wrong = []
    for chip in chips:
        for variant in (*row_kernels(), *rotary_kernels(), *vocabulary_kernels(), *packed(), *paged()):
            if not variant.name.startswith(asked.only):
                continue
            with compiling_for(chip) as built:
                variant.run()
            for kernel in built:
                counts = [kernel.count(p) for p in (r"\bHGMMA\b", r"\bHMMA\b", r"\bUTMALDG\b", r"LDGSTS\.E\.\S*128")]
                cells = [
                    chip,
                    variant.name,
                    kernel.name,
                    kernel.registers,
                    kernel.spills,
                    kernel.shared // 1024,
                    *counts,
                ]
                print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)
                reason = complaint(chip, variant.name, kernel)
                if reason:
                    wrong.append(f"{chip} {variant.name} {kernel.name}: {reason}")
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
