"""Log-probability of each row's label under a linear head, without the [T, V] logits in memory.

    log p_t = h_t . w_label - log sum_v exp(h_t . w_v)

In torch rows go through the head in chunks. The kernel folds each tile of logits into a running log-sum-exp and keeps
none. Both backward passes compute a chunk's logits again from the kept log-sum-exp: d logit_v = g (1[v = label] - p_v).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.launch import chip, launch, num_processors, runs_triton

CHUNK_BYTES = 64 << 20
"""Most memory that one chunk of float32 logits may take."""

TILES = {"interpreter": (32, 32, 32, 4, 1), "sm_80": (128, 128, 32, 8, 3), "sm_90": (128, 128, 64, 8, 3)}
"""Rows, vocabulary entries and model width of a matmul tile, warps, tiles in flight."""
SMALL_TILE = (32, 32, 16, 4, 1)
"""For float32 and for chips of no table."""


def reference(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> Tensor:
    """The same number with all logits at once."""
    logits_TV = hidden_TM.float() @ head_VM.float().T
    return torch.log_softmax(logits_TV, -1).gather(1, labels_T[:, None])[:, 0]


def token_logprobs(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> Tensor:
    """log p(label) of each row, float32 [T]; differentiable in `hidden_TM` and `head_VM`."""
    return scored_labels(hidden_TM, head_VM, labels_T)[0]


def scored_labels(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """log p(label) of each row as above, and whether no other entry is likelier, bool [T]."""
    if runs_triton(hidden_TM) and hidden_TM.dtype == head_VM.dtype:
        return on_triton(hidden_TM, head_VM, labels_T)
    scores: tuple[Tensor, Tensor] = _TokenLogprobs.apply(hidden_TM, head_VM, labels_T)
    return scores


def on_triton(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """By the kernels below; both of one dtype."""
    scores: tuple[Tensor, Tensor] = _OnTriton.apply(hidden_TM, head_VM, labels_T)
    return scores


def row_chunks(num_rows: int, vocab: int) -> list[slice]:
    """Slices of rows whose float32 logits fit CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // (4 * vocab))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
        lse_T = torch.empty(len(hidden_TM), dtype=torch.float32, device=hidden_TM.device)
        picked_T, is_top_T = torch.empty_like(lse_T), torch.empty_like(lse_T, dtype=torch.bool)
        for rows in row_chunks(len(hidden_TM), len(head_VM)):
            logits = (hidden_TM[rows] @ head_VM.T).float()  # [rows, V]
            lse_T[rows] = torch.logsumexp(logits, -1)
            picked_T[rows] = logits.gather(1, labels_T[rows, None])[:, 0]
            is_top_T[rows] = picked_T[rows] >= logits.amax(-1)
        ctx.save_for_backward(hidden_TM, head_VM, labels_T, lse_T)
        ctx.mark_non_differentiable(is_top_T)
        return picked_T - lse_T, is_top_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        grad_T, _ = grads
        hidden_TM, head_VM, labels_T, lse_T = ctx.saved_tensors
        grad_hidden_TM = torch.empty_like(hidden_TM)
        # a frozen head, as under an adapter, saves a third of the work
        grad_head_VM = torch.zeros_like(head_VM, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in row_chunks(len(hidden_TM), len(head_VM)):
            probs = ((hidden_TM[rows] @ head_VM.T).float() - lse_T[rows, None]).exp_()  # [rows, V]
            grad_logits = probs.mul_(-grad_T[rows, None])
            grad_logits.scatter_add_(1, labels_T[rows, None], grad_T[rows, None])
            grad_logits = grad_logits.to(hidden_TM.dtype)
            grad_hidden_TM[rows] = grad_logits @ head_VM
            if grad_head_VM is not None:
                grad_head_VM += grad_logits.T @ hidden_TM[rows]
        return grad_hidden_TM, None if grad_head_VM is None else grad_head_VM.to(head_VM.dtype), None


class _OnTriton(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
        hidden_TM, head_VM = hidden_TM.contiguous(), head_VM.contiguous()
        constants = _constants(hidden_TM.dtype)
        row_tiles = triton.cdiv(len(hidden_TM), constants["BLOCK_T"])
        splits = max(1, min(32, 2 * num_processors(hidden_TM.device) // max(row_tiles, 1)))
        picked_T = torch.empty(len(hidden_TM), dtype=torch.float32, device=hidden_TM.device)
        lse_TS, peaks_TS = torch.empty(2, len(hidden_TM), splits, dtype=torch.float32, device=hidden_TM.device)
        args = hidden_TM, head_VM, labels_T, picked_T, lse_TS, peaks_TS
        launch(_forward, (row_tiles, splits), *args, *hidden_TM.shape, len(head_VM), **constants)
        lse_T, is_best_T = lse_TS.logsumexp(1), picked_T >= peaks_TS.amax(1)
        ctx.mark_non_differentiable(is_best_T)
        ctx.save_for_backward(hidden_TM, head_VM, labels_T, lse_T)
        return picked_T - lse_T, is_best_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden_TM, head_VM, labels_T, lse_T = ctx.saved_tensors
        grad_T, constants = grads[0].contiguous(), _constants(hidden_TM.dtype)
        grad_hidden_TM = torch.empty_like(hidden_TM)
        grad_head_VM = torch.zeros_like(head_VM, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows in row_chunks(len(hidden_TM), len(head_VM)):
            hidden, grad_logits = hidden_TM[rows], hidden_TM.new_empty(rows.stop - rows.start, len(head_VM))
            grid = tuple(triton.cdiv(n, constants[block]) for n, block in zip(grad_logits.shape, BLOCKS, strict=True))
            args = hidden, head_VM, labels_T[rows], lse_T[rows], grad_T[rows], grad_logits
            launch(_logit_gradients, grid, *args, *hidden.shape, len(head_VM), **constants)
            grad_hidden_TM[rows] = grad_logits @ head_VM
            if grad_head_VM is not None:
                grad_head_VM += grad_logits.T @ hidden
        return grad_hidden_TM, None if grad_head_VM is None else grad_head_VM.to(head_VM.dtype), None


BLOCKS = ("BLOCK_T", "BLOCK_V")


def _constants(dtype: torch.dtype) -> dict[str, int]:
    tile = TILES.get(chip(), SMALL_TILE) if dtype.itemsize == 2 or chip() == "interpreter" else SMALL_TILE
    return dict(zip((*BLOCKS, "BLOCK_M", "num_warps", "STAGES"), tile, strict=True))


@triton.jit(do_not_specialize=["num_rows"])
def _forward(
    hidden,
    head,
    labels,
    picked,
    lse,
    peaks,
    num_rows,
    width,
    vocab,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """A tile of rows over its share of the vocabulary."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    share = tl.cdiv(tl.cdiv(vocab, tl.num_programs(1)), BLOCK_V) * BLOCK_V
    first = tl.program_id(1) * share
    label = tl.load(labels + row, mask=row < num_rows, other=-1)
    peak = tl.full([BLOCK_T], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    for start in range(first, tl.minimum(first + share, vocab), BLOCK_V):
        entry = start + tl.arange(0, BLOCK_V)
        logits = _logits(hidden, head, row, entry, num_rows, width, vocab, BLOCK_T, BLOCK_V, BLOCK_M, STAGES)
        is_label = entry[None, :] == label[:, None]
        own = tl.sum(tl.where(is_label, logits, 0.0), 1)
        tl.store(picked + row, own, mask=(label >= start) & (label < start + BLOCK_V))
        logits = tl.where((entry < vocab)[None, :], logits, -float("inf"))
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(logits - new_peak[:, None]), 1)
        peak = new_peak
    at = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(peaks + at, peak, mask=row < num_rows)
    is_empty = total == 0.0  # a share beyond the vocabulary's end
    result = tl.where(is_empty, -float("inf"), peak + tl.log(tl.where(is_empty, 1.0, total)))
    tl.store(lse + at, result, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _logit_gradients(
    hidden,
    head,
    labels,
    lse,
    grad,
    grad_logits,
    num_rows,
    width,
    vocab,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile of d logits."""
    row = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    entry = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    logits = _logits(hidden, head, row, entry, num_rows, width, vocab, BLOCK_T, BLOCK_V, BLOCK_M, STAGES)
    label = tl.load(labels + row, mask=row < num_rows, other=-1)[:, None]
    height = tl.load(lse + row, mask=row < num_rows, other=0.0)[:, None]
    slope = tl.load(grad + row, mask=row < num_rows, other=0.0)[:, None]
    value = slope * (tl.where(entry[None, :] == label, 1.0, 0.0) - tl.exp(logits - height))
    target = grad_logits + row.to(tl.int64)[:, None] * vocab + entry[None, :]
    tl.store(target, value.to(grad_logits.dtype.element_ty), mask=(row < num_rows)[:, None] & (entry < vocab)[None, :])


@triton.jit
def _logits(
    hidden,
    head,
    row,
    entry,
    num_rows,
    width,
    vocab,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """[rows, entries] in float32."""
    logits = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    hidden_rows = hidden + row.to(tl.int64)[:, None] * width
    head_rows = head + entry.to(tl.int64)[:, None] * width
    for start in tl.range(0, width, BLOCK_M, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK_M)[None, :]
        x = tl.load(hidden_rows + column, mask=(row < num_rows)[:, None] & (column < width), other=0.0)
        w = tl.load(head_rows + column, mask=(entry < vocab)[:, None] & (column < width), other=0.0)
        logits = tl.dot(x, tl.trans(w), logits, input_precision="ieee")
    return logits
