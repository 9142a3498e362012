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
    logprobs_T: Tensor = _TokenLogprobs.apply(hidden_TM, head_VM, labels_T)  # type: ignore[no-untyped-call]
    return logprobs_T


def row_chunks(num_rows: int, vocab: int) -> list[slice]:
    """Slices of rows whose float32 logits fit CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // (4 * vocab))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TM: Tensor, head_VM: Tensor, labels_T: Tensor) -> Tensor:
        lse_T = torch.empty(len(hidden_TM), dtype=torch.float32, device=hidden_TM.device)
        picked_T = torch.empty_like(lse_T)
        for rows in row_chunks(len(hidden_TM), len(head_VM)):
            logits = (hidden_TM[rows] @ head_VM.T).float()  # [rows, V]
            lse_T[rows] = torch.logsumexp(logits, -1)
            picked_T[rows] = logits.gather(1, labels_T[rows, None])[:, 0]
        ctx.save_for_backward(hidden_TM, head_VM, labels_T, lse_T)
        return picked_T - lse_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_T,) = grads
        hidden_TM, head_VM, labels_T, lse_T = ctx.saved_tensors
        grad_hidden_TM = torch.empty_like(hidden_TM)
        grad_head_VM = torch.zeros_like(head_VM, dtype=torch.float32)
        for rows in row_chunks(len(hidden_TM), len(head_VM)):
            probs = ((hidden_TM[rows] @ head_VM.T).float() - lse_T[rows, None]).exp_()  # [rows, V]
            grad_logits = probs.mul_(-grad_T[rows, None])
            grad_logits.scatter_add_(1, labels_T[rows, None], grad_T[rows, None])
            grad_logits = grad_logits.to(hidden_TM.dtype)
            grad_hidden_TM[rows] = grad_logits @ head_VM
            grad_head_VM += grad_logits.T @ hidden_TM[rows]
        return grad_hidden_TM, grad_head_VM.to(head_VM.dtype), None
