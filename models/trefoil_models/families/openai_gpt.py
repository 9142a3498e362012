"""GPT-1 (`openai-gpt`; Radford et al. 2018): gpt2's attention with a norm behind each sum and none at the end."""

from typing import ClassVar

from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_models.attend import Attend, Rows
from trefoil_models.config_keys import MOST_LAYERS, CheckpointError, Keys
from trefoil_models.decoder import Decoder
from trefoil_models.families import gpt2
from trefoil_models.families.gpt2 import Attention, Config
from trefoil_models.heads import Heads
from trefoil_models.layers import Embedding, LayerNorm, PlainMLP

__all__ = ["Config", "Model", "read_config"]

ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
"""By the names of this family, whose gelu is the one by tanh."""


def read_config(keys: Keys) -> Config:
    """GPT-1's own keys and defaults. Raises CheckpointError."""
    width, heads = keys.size("n_embd", 768), keys.size("n_head", 12)
    if width % heads:
        raise CheckpointError(f"config.json: n_embd {width} is no multiple of n_head {heads}")
    return Config(
        vocab_size=keys.size("vocab_size", 40478),
        width=width,
        inner=4 * width,
        num_layers=keys.size("n_layer", 12, most=MOST_LAYERS),
        heads=heads,
        head_dim=width // heads,
        longest=keys.size("n_positions", 512),
        eps=keys.number("layer_norm_epsilon", 1e-5),
        activation=ACTIVATIONS[keys.choice("afn", ACTIVATIONS, "gelu")],
        is_tied=keys.flag("tie_word_embeddings", True),
        scales_by_width=True,
        scales_by_layer=False,
    )


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: Config, site: int) -> None:
        super().__init__()
        self.attn = Attention(config, site)
        self.ln_1 = LayerNorm(config.width, config.eps)
        self.mlp = PlainMLP(config.width, config.inner, activation=config.activation)
        self.ln_2 = LayerNorm(config.width, config.eps)

    def forward(self, x_TM: Tensor, attend: Attend) -> Tensor:
        x_TM = self.ln_1.of_sum(self.attn(x_TM, attend), x_TM)
        return self.ln_2.of_sum(self.mlp(x_TM), x_TM)


class Model(Decoder):
    """Ids to hidden rows, as the last layer leaves them."""

    base_prefix: ClassVar[str] = "transformer."
    transposed: ClassVar[frozenset[str]] = gpt2.Model.transposed

    def __init__(self, config: Config, heads: Heads) -> None:
        super().__init__(config)
        self.tokens_embed = Embedding(config.vocab_size, config.width)
        self.positions_embed = Embedding(config.longest, config.width)
        self.h = nn.ModuleList(Layer(config, site) for site in range(config.num_layers))
        self.add_heads(self.tokens_embed, heads)

    def forward(self, rows: Rows, attend: Attend) -> Tensor:
        x_TM = add(self.tokens_embed(rows.ids_T), self.positions_embed(rows.positions_T))
        for layer in self.h:
            x_TM = layer(x_TM, attend)
        return x_TM
