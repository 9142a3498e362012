"""Our kernels and our engine on one GPU, beside torch's attention and transformers' continuous batching, in one call.

    python benchmarks/gpu.py [--skip-kernels] [--skip-serving]

Prints the tables of docs/measurements.md. No time is printed for a result that is wrong. Needs torch, triton, numpy,
safetensors, msgspec, structlog and setproctitle, and transformers for the serving part: no web stack (docs/kernels.md).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trefoil_kernels import linear, packed_attention, page_write, paged_attention, rms_norm
from trefoil_kernels.bias import RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing

BF16 = torch.bfloat16
AHEAD_CYCLES = 6_000_000
"""Three milliseconds, in which the host launches what is measured, a backward pass too."""
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


@dataclass(frozen=True, slots=True)
class Row:
    """A workload, who computed it, and what it achieved."""

    workload: str
    who: str
    run: Callable[[], Tensor]
    amount: float
    unit: str


def seconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median time of a call with a cold second-level cache; the host is ahead of the device, as in a running step."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        flush.zero_()
        torch.cuda._sleep(AHEAD_CYCLES)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def show(rows: list[Row], wanted: Tensor | None) -> None:
    """One line a row; the first row is ours."""
    for row in rows:
        try:
            out = row.run()
        except (RuntimeError, ImportError) as error:
            print(f"| {row.workload} | {row.who} | left out: {str(error).splitlines()[0][:80]} |", flush=True)
            continue
        if wanted is not None:
            error = ((out.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()
            if not error < 2e-2:
                print(f"| {row.workload} | {row.who} | WRONG: relative error {error:.1e} |", flush=True)
                continue
        took = seconds(row.run)
        print(f"| {row.workload} | {row.who} | {row.amount / took:.0f} {row.unit} ({took * 1e3:.3f} ms) |", flush=True)


def ceilings() -> None:
    """What this card copies and multiplies at best."""
    x, y = torch.empty(2, 1 << 30, dtype=torch.int8, device="cuda")
    a, b = torch.randn(2, 8192, 8192, dtype=BF16, device="cuda")
    show([Row("copy 1 GiB", "torch", lambda: x.copy_(y), 2 * x.numel() / 1e9, "GB/s")], None)
    show([Row("matmul 8192", "cuBLAS", lambda: a @ b, 2 * 8192**3 / 1e12, "TFLOP/s")], None)


def sdpa(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Callable[[], Tensor]:
    """torch's attention by one backend, over [N, L, heads, D]; gives packed rows."""
    wide = [x.transpose(1, 2) for x in (q, k, v)]

    def run() -> Tensor:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(*wide, is_causal=is_causal, enable_gqa=q.shape[2] != k.shape[2])
        return out.transpose(1, 2).flatten(0, 1)

    return run


def flex(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, bias_HE: Tensor | None, reach: int) -> Callable[[], Tensor]:
    """FlexAttention, compiled, over [N, L, heads, D]."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    wide = [x.transpose(1, 2) for x in (q, k, v)]
    block = create_block_mask(lambda b, h, i, j: i >= j, None, None, q.shape[1], k.shape[1]) if is_causal else None
    compiled = torch.compile(flex_attention)

    def biased(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias_HE[h, (j - i).clamp(-reach, reach) + reach]

    added = None if bias_HE is None else biased
    return lambda: compiled(*wide, score_mod=added, block_mask=block, enable_gqa=True).transpose(1, 2).flatten(0, 1)


def prefill(name: str, num: int, length: int, H: int, G: int, D: int, mask: Mask, biased: bool) -> None:
    """Forward attention of `num` sequences of one length, ours packed and varlen."""
    q, k, v = (torch.randn(num, length, heads, D, dtype=BF16, device="cuda") for heads in (H, G, G))
    bias = RelativeBias(torch.randn(32, H, device="cuda"), 128, is_bidirectional=True) if biased else None
    packing, rows = Packing((length,) * num), [x.flatten(0, 1) for x in (q, k, v)]
    tera = 4 * num * H * D * length * length / (2 if mask.is_causal else 1) / 1e12

    def ours() -> Tensor:
        return packed_attention.packed_attention(*rows, packing, mask=mask, scale=D**-0.5, bias=bias)

    flash = sdpa(SDPBackend.FLASH_ATTENTION, q, k, v, mask.is_causal)
    table = bias and bias.by_distance()
    peers = [Row(name, "FlexAttention", flex(q, k, v, mask.is_causal, table, 128), tera, "TFLOP/s")]
    if not biased:
        cudnn = sdpa(SDPBackend.CUDNN_ATTENTION, q, k, v, mask.is_causal)
        peers += [Row(name, "torch flash", flash, tera, "TFLOP/s"), Row(name, "torch cuDNN", cudnn, tera, "TFLOP/s")]
    if length > 2048:  # the reference would hold all scores
        wanted = flash()
    else:
        wanted = packed_attention.reference(*rows, packing, mask=mask, scale=D**-0.5, bias=bias)
    show([Row(name, "trefoil", ours, tera, "TFLOP/s"), *peers], wanted)


def backward(name: str, num: int, length: int, H: int, G: int, D: int) -> None:
    """Forward and backward of causal packed attention (3.5 times the forward's work)."""
    q, k, v = (
        torch.randn(num * length, heads, D, dtype=BF16, device="cuda", requires_grad=True) for heads in (H, G, G)
    )
    packing, grad = Packing((length,) * num), torch.randn(num * length, H, D, dtype=BF16, device="cuda")

    def ours() -> Tensor:
        out = packed_attention.packed_attention(q, k, v, packing, mask=Mask.CAUSAL, scale=D**-0.5)
        return torch.autograd.grad(out, [q, k, v], grad)[0]

    def flash() -> Tensor:
        wide = [x.unflatten(0, (num, length)).transpose(1, 2) for x in (q, k, v)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=H != G)
        return torch.autograd.grad(out.transpose(1, 2).flatten(0, 1), [q, k, v], grad)[0]

    tera = 3.5 * 2 * num * H * D * length * length / 1e12
    show([Row(name, "trefoil", ours, tera, "TFLOP/s"), Row(name, "torch FLASH", flash, tera, "TFLOP/s")], flash())


def decode(name: str, num: int, context: int, H: int, G: int, D: int, dtype: torch.dtype = BF16) -> None:
    """One row a sequence over pages of 16; the amount is what must be read."""
    per = context // 16
    pages = page_write.Pages(*torch.randn(2, num * per, 16, G, D, dtype=BF16, device="cuda").to(dtype))
    order = torch.randperm(num * per, device="cuda").view(num, per)
    lens = torch.full((num,), context, device="cuda")
    table, packing = paged_attention.PageTable(order, lens, (context,) * num), Packing((1,) * num)
    q = torch.randn(num, H, D, dtype=BF16, device="cuda")
    args = q, pages, table, packing

    def ours() -> Tensor:
        return paged_attention.paged_attention(*args, mask=Mask.CAUSAL, scale=D**-0.5)

    giga = 2 * num * context * G * D * dtype.itemsize / 1e9
    wanted = paged_attention.reference(*args, mask=Mask.CAUSAL, scale=D**-0.5)
    show([Row(name, "trefoil", ours, giga, "GB/s")], wanted)


def one_row(name: str, num_out: int, width: int) -> None:
    """What decode of one stream does most: a row times a weight; many weights, so that no cache holds them."""
    weights = [
        torch.randn(num_out, width, dtype=BF16, device="cuda") for _ in range(1 + (400 << 20) // (num_out * width * 2))
    ]
    x, giga = torch.randn(1, width, dtype=BF16, device="cuda"), len(weights) * num_out * width * 2 / 1e9

    def captured(op: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        def all_of_them() -> list[Tensor]:
            return [op(x, weight) for weight in weights]

        all_of_them()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outs = all_of_them()

        def replayed() -> Tensor:
            graph.replay()
            return outs[0]

        return replayed

    with torch.inference_mode():
        wanted = (x.double() @ weights[0].double().T).float()
        rows = [
            Row(name, who, captured(op), giga, "GB/s") for who, op in (("trefoil", linear.linear), ("cuBLAS", F.linear))
        ]
        show(rows, wanted)


def norms() -> None:
    """RMSNorm with residual: two reads and two writes."""
    x, residual = torch.randn(2, 8192, 4096, dtype=BF16, device="cuda")
    weight = torch.randn(4096, dtype=BF16, device="cuda")

    def plain() -> Tensor:
        return rms_norm.reference(x + residual, weight, 1e-5)

    giga, name = 4 * x.numel() * 2 / 1e9, "add_rms_norm 8192x4096"
    ours = Row(name, "trefoil", lambda: rms_norm.add_rms_norm(x, residual, weight, 1e-5)[0], giga, "GB/s")
    show([ours, Row(name, "torch", plain, giga, "GB/s")], plain())


def kernels() -> None:
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n| workload | by | result |\n|---|---|---|")
    ceilings()
    prefill("causal prefill, head 128, 16k", 1, 16384, 32, 8, 128, Mask.CAUSAL, biased=False)
    prefill("causal prefill, head 128, 2k x 8", 8, 2048, 32, 8, 128, Mask.CAUSAL, biased=False)
    prefill("bidirectional, head 64, 512 x 64", 64, 512, 12, 12, 64, Mask.FULL, biased=False)
    prefill("bidirectional, head 64, 512 x 64, T5 bias", 64, 512, 12, 12, 64, Mask.FULL, biased=True)
    backward("causal forward and backward, head 128, 4k x 4", 4, 4096, 32, 8, 128)
    backward("causal forward and backward, head 64, 1k x 16", 16, 1024, 12, 12, 64)
    decode("paged decode, 256 x 2k, 32/8 x 128", 256, 2048, 32, 8, 128)
    decode("paged decode, 64 x 8k, 32/8 x 128", 64, 8192, 32, 8, 128)
    decode("paged decode, 1 x 8k, 32/8 x 128", 1, 8192, 32, 8, 128)
    decode("paged decode, 256 x 2k, 32/8 x 128, pages of fp8", 256, 2048, 32, 8, 128, torch.float8_e4m3fn)
    decode("paged decode, 64 x 8k, 32/8 x 128, pages of fp8", 64, 8192, 32, 8, 128, torch.float8_e4m3fn)
    one_row("one row x 6144x4096", 6144, 4096)
    one_row("one row x 4096x4096", 4096, 4096)
    one_row("one row x 4096x14336", 4096, 14336)
    one_row("one row x 28672x4096", 28672, 4096)
    norms()


def write_weights(folder: Path) -> None:
    """The Llama-3-8B shape with random weights, and what transformers says of it."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda"):
        LlamaForCausalLM(LlamaConfig(**LLAMA_8B)).to(BF16).save_pretrained(folder)
    # read again: the cast above took the rotary frequencies along, which transformers keeps in float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16, device_map="cuda").eval()
    with torch.inference_mode():
        picked = [int(model(torch.tensor([ids], device="cuda")).logits[0, -1].argmax()) for ids in prompts()[:4]]
    (folder / "first_tokens.json").write_text(json.dumps(picked))


def prompts() -> list[list[int]]:
    """256 of 512 tokens."""
    return torch.randint(10, 100_000, (256, 512), generator=torch.Generator().manual_seed(1)).tolist()


def serve_theirs(folder: Path) -> None:
    """transformers' continuous batching, its graphs captured before the clock starts.

    Says every ten seconds how far it is: it may be stopped before it comes to the end.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16, device_map="cuda", attn_implementation="sdpa")
    settings = GenerationConfig(max_new_tokens=256, do_sample=False, eos_token_id=-1, pad_token_id=0)
    before = time.perf_counter()
    with model.continuous_batching_context_manager(generation_config=settings, block=True, timeout=5) as manager:
        print(f"transformers warmed up in {time.perf_counter() - before:.0f} s", flush=True)
        for asked in (prompts()[:8], prompts()):  # the first few only to begin with
            counted(manager, asked)


def counted(manager: Any, asked: list[list[int]]) -> None:
    """All answers, in tokens a second so far, at the end and every ten seconds."""
    start = told = time.perf_counter()
    lens = dict.fromkeys(manager.add_requests(inputs=asked, max_new_tokens=256, streaming=True), 0)
    while sum(lens.values()) < 256 * len(asked):
        result = manager.get_result(timeout=1)
        assert result or manager.is_running(), "transformers' manager stopped"
        if result:
            lens[result.request_id] = len(result.generated_tokens)
        if (now := time.perf_counter()) - told > 10 or sum(lens.values()) == 256 * len(asked):
            told, done = now, sum(lens.values())
            rate = done / (now - start)
            print(
                f"| {len(asked)} x 512 in, {done / len(asked):.0f} out | transformers | {rate:.0f} tokens/s |",
                flush=True,
            )


def serve_ours(folder: Path, quantization: str | None = None) -> None:
    """One stream, then 256 at once."""
    from trefoil import wire
    from trefoil.engine.graphs import CudaCapture
    from trefoil.engine.memory import plan_memory
    from trefoil.engine.startup import build_generator, warm_up
    from trefoil_models import checkpoint
    from trefoil_models.packing import lay_together, pack_float8_on

    model = checkpoint.load(folder, dtype=BF16, device="cpu" if quantization else "cuda")
    if quantization:
        pack_float8_on(model, torch.device("cuda"))
    else:
        lay_together(model)
    who = f"trefoil, {quantization}" if quantization else "trefoil"
    memory = plan_memory(model.sites, page_size=16, dtype=BF16, budget=40 << 30, max_model_len=2048, max_num_seqs=256)
    engine = build_generator(
        model,
        memory,
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        prefix_caching=False,
        never=[],
        capture=CudaCapture(),
    )
    warm_up(engine)

    def answers(prompts: list[list[int]], count: int) -> dict[str, list[int]]:
        got: dict[str, list[int]] = {str(n): [] for n in range(len(prompts))}
        for n, ids in enumerate(prompts):
            engine.submit(wire.Generate(str(n), ids, wire.SamplingParams(max_tokens=count, temperature=0.0)))
        while engine.has_work:
            for event in engine.step():
                if isinstance(event, wire.Tokens):
                    got[event.id] += event.ids
        return got

    wanted = json.loads((folder / "first_tokens.json").read_text())
    got = answers(prompts()[: len(wanted)], 1)
    agreed = sum(got[str(n)][0] == token for n, token in enumerate(wanted))
    assert quantization or agreed >= len(wanted) - 1, f"only {agreed} of {len(wanted)} first tokens are transformers'"
    for _ in range(3):
        start = time.perf_counter()
        answers([prompts()[0][:128]], 129)
        took = (time.perf_counter() - start) / 129
        print(f"| one stream, 128 in, 128 out | {who} | {took * 1e3:.2f} ms a token |", flush=True)
    for _ in range(2):
        start = time.perf_counter()
        answers(prompts(), 256)
        took = time.perf_counter() - start
        print(f"| 256 x 512 in, 256 out | {who} | {256 * 256 / took:.0f} tokens/s |", flush=True)


SERVING: dict[str, Callable[[Path], None]] = {
    "weights": write_weights,
    "ours": serve_ours,
    "ours in fp8": partial(serve_ours, quantization="fp8"),
    "theirs": serve_theirs,
}


def serving(limit_s: float) -> None:
    """Each side in a process of its own; theirs may take so long that it is left out."""
    with tempfile.TemporaryDirectory() as folder:
        for part in SERVING:
            command = [sys.executable, __file__, "--part", part, "--folder", folder]
            try:
                subprocess.run(command, check=part != "theirs", timeout=limit_s)
            except subprocess.TimeoutExpired:
                print(f"| 256 x 512 in, 256 out | {part} | left out: not done in {limit_s:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-serving", action="store_true")
    parser.add_argument("--skip-kernels", action="store_true")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each side of the serving part")
    parser.add_argument("--part", choices=SERVING, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device")
    if asked.part:
        SERVING[asked.part](asked.folder)
        return
    if not asked.skip_kernels:
        kernels()
    if not asked.skip_serving:
        serving(asked.limit)


if __name__ == "__main__":
    main()
