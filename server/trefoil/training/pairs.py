"""Inputs and targets: what an encoder reads, and what its decoder must learn to say of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trefoil_models.attend import packed_pairs
from trefoil_models.checkpoint import EncoderDecoder


@dataclass(frozen=True, slots=True)
class PairExample:
    """An input and its target with the token that ends it; every token of the target is a label."""

    source: tuple[int, ...]
    target: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.source, "an encoder reads at least one id"
        assert self.target, "a target has at least the token that ends it"

    def __len__(self) -> int:
        """Rows in a pass, of both sides."""
        return len(self.source) + len(self.target)


def target_logprobs(model: EncoderDecoder, examples: Sequence[PairExample], *, start_id: int) -> Tensor:
    """log p of every id of the targets in order, float32 [R], from one packed pass of each side."""
    device = model.lm_head.weight.device
    shifted = [(start_id, *example.target[:-1]) for example in examples]
    pairs = packed_pairs([example.source for example in examples], shifted, device)
    model.encode(pairs.encoder_rows, pairs.here, pairs.there)
    labels_R = torch.tensor([i for example in examples for i in example.target], device=device)
    return model.lm_head.logprobs(model(pairs.rows, pairs.there), labels_R)
