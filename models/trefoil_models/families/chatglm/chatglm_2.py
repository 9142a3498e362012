"""ChatGLM 2 and 3 and the first release of GLM-4 (`chatglm`; arXiv 2406.12793): glm's mathematics under older names.

Pre-norm, neighbours turn in half of each head, one projection for queries, keys and values, one for gate and up.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.masks import Mask
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys, divided, divided_kv_heads
from trefoil_models.decoder import Decoder
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, FusedGatedMLP, FusedLinear, LayerNorm, Linear, RMSNorm
from trefoil_models.rotary_scaling import Rotary, Scaling, plain_scaling


@dataclass(frozen=True, slots=True)
class Config:
    """The checkpoint keys that the mathematics needs; with `shares_keys` queries, keys and values lie in blocks."""

    vocab_size: int
    width: int
    inner: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: Scaling
    shares_keys: bool
    has_rms_norm: bool
    has_last_norm: bool
    qkv_bias: bool
    bias: bool
    is_tied: bool
    length_pivot: None = None

    def divided(self, ranks: int) -> Self:
        """One rank's: fewer heads, a narrower feed-forward. Raises Indivisible."""
        return replace(
            self,
            heads=divided("num_attention_heads", self.heads, ranks),
            kv_heads=divided_kv_heads(self.kv_heads, ranks),
            inner=divided("ffn_hidden_size", self.inner, ranks),
        )

    @property
    def longest(self) -> int:
        return self.scaling.max_positions


def read_config(keys: Keys) -> Config:
    """Their own keys and the defaults of the published class. Raises CheckpointError."""
    keys.refuse("apply_residual_connection_post_layernorm", False)
    keys.refuse("fp32_residual_connection", False)
    keys.refuse("quantization_bit", 0)
    keys.refuse("pre_seq_len", 0)
    keys.refuse("original_rope", True)
    heads, head_dim = keys.size("num_attention_heads", 32), keys.size("kv_channels", 128)
    shares_keys, has_bias = keys.flag("multi_query_attention", False), keys.flag("add_bias_linear", False)
    kv_heads = keys.size("multi_query_group_num", 1) if shares_keys else heads
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is no multiple of multi_query_group_num {kv_heads}"
        )
    return Config(
        vocab_size=keys.size("padded_vocab_size", 65024),
        width=keys.size("hidden_size", 4096),
        inner=keys.size("ffn_hidden_size", 13696),
        num_layers=keys.size("num_layers", 28, most=MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        eps=keys.number("layernorm_epsilon", 1e-5),
        scaling=_scaling(keys, head_dim // 2),
        shares_keys=shares_keys,
        has_rms_norm=keys.flag("rmsnorm", True),
        has_last_norm=keys.flag("post_layer_norm", True),
        qkv_bias=has_bias or keys.flag("add_qkv_bias", False),
        bias=has_bias,
        is_tied=keys.flag("tie_word_embeddings", False),
    )


def _scaling(keys: Keys, width: int) -> Scaling:
    """`rope_ratio` multiplies the base; ChatGLM2-6B-32K's own code divided positions by it."""
    ratio, longest = keys.number("rope_ratio", 1.0), keys.size("seq_length", 2048)
    if ratio != 1.0 and "chatglm2" in keys.text("_name_or_path", "").lower():
        return plain_scaling("linear", width=width, theta=10000.0, max_positions=longest, factor=ratio)
    return plain_scaling("default", width=width, theta=10000.0 * ratio, max_positions=longest)


class Attention(nn.Module):
    """Grouped query heads over the sequence so far."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.site, self.head_dim, self.shares_keys = site, config.head_dim, config.shares_keys
        self.parts = [config.heads, config.kv_heads, config.kv_heads]
        outs = [heads * config.head_dim for heads in self.parts]
        blocks = outs if config.shares_keys else [sum(outs)]
        self.query_key_value = FusedLinear(config.width, *blocks, bias=config.qkv_bias)
        self.dense = Linear(config.heads * config.head_dim, config.width, bias=config.bias)

    def forward(self, x_TM: Tensor, turn: Turn, attend: Attend) -> Tensor:
        heads = self.query_key_value(x_TM).unflatten(-1, (-1, self.head_dim))
        if self.shares_keys:
            q_THD, k_TGD, v_TGD = heads.split(self.parts, 1)
        else:  # each head's query, key and value follow each other
            q_THD, k_TGD, v_TGD = (part.contiguous() for part in heads.unflatten(1, (-1, 3)).unbind(2))
        scale = self.head_dim**-0.5
        out_THD = attend.own(self.site, q_THD, k_TGD, v_TGD, mask=Mask.CAUSAL, scale=scale, turn=turn)
        return self.dense(out_THD.flatten(1))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.input_layernorm = norm(config)
        self.self_attention = Attention(config, site)
        self.post_attention_layernorm = norm(config)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        self.mlp = FusedGatedMLP(config.width, config.inner, activation="silu", bias=config.bias, names=names)

    def forward(self, x_TM: Tensor, turn: Turn, attend: Attend) -> Tensor:
        out_TM = self.self_attention(self.input_layernorm(x_TM), turn, attend)
        normed_TM, x_TM = self.post_attention_layernorm.after(out_TM, x_TM)
        return add(x_TM, self.mlp(normed_TM))


def norm(config: Config) -> RMSNorm | LayerNorm:
    """The kind that the model has everywhere."""
    return (RMSNorm if config.has_rms_norm else LayerNorm)(config.width, config.eps)


class Embeddings(nn.Module):
    """Those of the vocabulary."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.word_embeddings = Embedding(config.vocab_size, config.width)


class Encoder(nn.Module):
    """All layers; what the files call an encoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))
        self.final_layernorm = norm(config) if config.has_last_norm else nn.Identity()

    def forward(self, x_TM: Tensor, turn: Turn, attend: Attend) -> Tensor:
        for layer in self.layers:
            x_TM = layer(x_TM, turn, attend)
        return self.final_layernorm(x_TM)


class Model(Decoder):
    """Ids to hidden rows, after the final norm."""

    outside: ClassVar[frozenset[str]] = frozenset({"lm_head", "classifier_head"})
    class_head: ClassVar[str] = "classifier_head"
    class_head_has_bias: ClassVar[bool] = True
    vocab_matrix: ClassVar[str] = "transformer.output_layer.weight"
    base_prefix: ClassVar[str] = "transformer."

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.embedding = Embeddings(config)
        self.encoder = Encoder(config)
        self.rotary = Rotary(config.scaling, run=1)
        self.add_heads(self.embedding.word_embeddings, heads)

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        x_TM: Tensor = self.encoder(self.embedding.word_embeddings(rows.ids_T), self.rotary(rows), attend)
        return x_TM
