"""Log-probability of each row's label under a linear head, without the [T, V] logits in memory.

    log p_t = h_t . w_label - log sum_v exp(h_t . w_v)

Rows go through the head in chunks; the backward pass computes each chunk's logits again from the kept log-sum-exp.
"""

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Most memory that one chunk of float32 logits may take."""


def reference(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> Tensor:
    """The same number with all logits at once."""
    logits_TV = hidden_TM.float() @ head_VM.float().T
    return torch.log_softmax(logits_TV, -1).gather(1, labels_T[:, None])[:, 0]


def token_logprobs(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> Tensor:
    """log p(label) of each row, float32 [T]; differentiable in `hidden_TM` and `head_VM`."""
    return scored_labels(hidden_TM, head_VM, labels_T)[0]


def scored_labels(hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    """log p(label) of each row as above, and whether no other entry is likelier, bool [T]."""
    scores: tuple[Tensor, Tensor] = _TokenLogprobs.apply(hidden_TM, head_VM, labels_T)
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
