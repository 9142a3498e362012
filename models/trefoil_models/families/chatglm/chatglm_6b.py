"""ChatGLM-6B (`chatglm`; GLM: Du et al., arXiv 2103.10360): a prompt is read both ways, its answer forwards.

The context ends where the answer starts (`<sop>`). Each half of a head turns by a place of its own: the first by the
place in the context, at which the whole answer stays where the mask token stood; the second by the place in the answer.
Residuals are those of normalised rows, weighted as in DeepNorm (arXiv 2203.00555).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from trefoil_kernels.lookup import lookup
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend, Contexts, Rows, Span, places
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided_plainly
from trefoil_models.decoder import Decoder
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, LayerNorm, Linear, PlainMLP

ALPHA = (2 * 28) ** 0.5
"""Of the released depth, which the published code takes for every depth."""


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs."""

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    head_dim: int
    longest: int
    eps: float
    start_id: int
    mask_ids: tuple[int, ...]
    is_tied: bool
    length_pivot: None = None

    @property
    def kv_heads(self) -> int:
        return self.heads

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return divided_plainly(self, ranks)


def read_config(keys: Keys) -> Config:
    """ChatGLM-6B's own keys and the defaults of the published class. Raises CheckpointError."""
    keys.refuse("position_encoding_2d", True)
    keys.refuse("quantization_bit", 0)
    keys.refuse("pre_seq_len", 0)
    width, heads = keys.size("hidden_size", 4096), keys.size("num_attention_heads", 32)
    if width % (4 * heads):
        raise CheckpointError(f"config.json: hidden_size {width} does not give {heads} heads whose halves turn")
    return Config(
        vocab_size=keys.size("vocab_size", 150528),
        width=width,
        inner=keys.size("inner_hidden_size", 16384),
        num_layers=keys.size("num_layers", 28, most=MOST_LAYERS),
        heads=heads,
        head_dim=width // heads,
        longest=keys.size("max_sequence_length", 2048),
        eps=keys.number("layernorm_epsilon", 1e-5),
        start_id=keys.integer("bos_token_id", 150004),
        mask_ids=(keys.integer("gmask_token_id", 150001), keys.integer("mask_token_id", 150000)),
        is_tied=keys.flag("tie_word_embeddings", False),
    )


class HalfPrecisionTurns(nn.Module):
    """Turns of both halves of a head, from tables that are computed in float16, as the published code does."""

    cos_LR: Tensor
    sin_LR: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.head_dim // 2
        steps = torch.arange(0, width, 2, dtype=torch.int64, device="cpu").float() / width
        positions_L = torch.arange(config.longest, dtype=torch.int64, device="cpu").half()
        angles_LR = positions_L[:, None] * (1.0 / 10000.0**steps).half()
        self.register_buffer("cos_LR", angles_LR.cos().float(), persistent=False)
        self.register_buffer("sin_LR", angles_LR.sin().float(), persistent=False)

    def forward(self, places_T2: Tensor) -> Turn:
        at, half = places_T2.flatten(), self.cos_LR.shape[1]
        cos, sin = (lookup(at, table).view(len(places_T2), -1) for table in (self.cos_LR, self.sin_LR))
        return Turn(cos, sin, half)


class Attention(nn.Module):
    """One projection makes each head's query, key and value, one after the other."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.heads = site, config.heads
        heads_out = config.heads * config.head_dim
        self.query_key_value = Linear(config.width, 3 * heads_out)
        self.dense = Linear(heads_out, config.width)

    def forward(self, x_TM: Tensor, turn: Turn, contexts: Contexts | None, attend: Attend) -> Tensor:
        parts = self.query_key_value(x_TM).unflatten(-1, (self.heads, 3, -1)).unbind(2)
        q_THD, k_THD, v_THD = (part.contiguous() for part in parts)
        scale = q_THD.shape[2] ** -0.5
        out_THD = attend.own(
            self.site, q_THD, k_THD, v_THD, mask=Mask.CAUSAL, scale=scale, turn=turn, contexts=contexts
        )
        return self.dense(out_THD.flatten(1))


class Layer(nn.Module):
    """n = norm(x), y = alpha n + attention(n); m = norm(y), alpha m + mlp(m)."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.width, config.eps)
        self.attention = Attention(config, site)
        self.post_attention_layernorm = LayerNorm(config.width, config.eps)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        self.mlp = PlainMLP(config.width, config.inner, activation="gelu_new", names=names)

    def forward(self, x_TM: Tensor, turn: Turn, contexts: Contexts | None, attend: Attend) -> Tensor:
        x_TM = self.input_layernorm(x_TM)
        x_TM = self.post_attention_layernorm(x_TM * ALPHA + self.attention(x_TM, turn, contexts, attend))
        return x_TM * ALPHA + self.mlp(x_TM)


class Model(Decoder):
    """Ids to hidden rows, after the final norm."""

    base_prefix: ClassVar[str] = "transformer."

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.word_embeddings = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.width, config.eps)
        self.turns = HalfPrecisionTurns(config)
        self.add_heads(self.word_embeddings, heads)

    @property
    def shortest_prompt(self) -> list[int]:
        return [self.config.mask_ids[0], self.config.start_id]

    def span_of(self, ids: Sequence[int]) -> Span | None:
        """The context ends at the first `<sop>`; the answer stands at the first [gMASK], or else the first [MASK]."""
        masks = [ids.index(mask) for mask in self.config.mask_ids if mask in ids]
        return Span(ids.index(self.config.start_id), masks[0]) if masks and self.config.start_id in ids else None

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        if rows.places_T2 is None:
            rows = self._placed(rows)
        assert rows.places_T2 is not None
        x_TM, turn = self.word_embeddings(rows.ids_T), self.turns(rows.places_T2)
        for layer in self.layers:
            x_TM = layer(x_TM, turn, rows.contexts, attend)
        return self.final_layernorm(x_TM)

    def _placed(self, rows: Rows) -> Rows:
        """Whole sequences with their places and contexts; one without `<sop>` is an answer to an empty context."""
        ids, device = rows.ids_T.tolist(), rows.ids_T.device
        starts = [row for row, position in enumerate(rows.positions_T.tolist()) if not position]
        lens = [end - start for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]
        spans = [self.span_of(ids[start : start + n]) or Span(0, 0) for start, n in zip(starts, lens, strict=True)]
        both = [torch.from_numpy(places(span, 0, n)) for span, n in zip(spans, lens, strict=True)]
        contexts = Contexts.of([span.context for span in spans], Packing(tuple(lens)), device)
        return replace(rows, places_T2=torch.cat(both).to(device), contexts=contexts)
