"""Sizes before anything is bought: what a KV cache takes, and what an amount of arithmetic is best spent on.

KV cache: 2 (keys and values) x sequences x layers x tokens x KV heads x head width x bytes of a number. Latent
attention (DeepSeek-V2 and V3) keeps one row for both and for all heads: the latent numbers and the part that turns.
Kaplan et al. 2020 (arXiv:2001.08361): N = 1.3e9 C^0.73 with C in petaflop/s-days, loss = (3.1e8 / C)^0.050.
Hoffmann et al. 2022 (arXiv:2203.15556): 20 tokens a parameter, loss = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28.
Both with C = 6 N D floating-point operations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trefoil_models.config_keys import CheckpointError, Keys

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1}
ENCODERS = frozenset({"albert", "bert", "distilbert", "roberta", "xlm-roberta"})
ENCODER_DECODERS = frozenset({"bart", "mbart", "mt5", "t5", "umt5"})
LATENT = frozenset({"deepseek_v2", "deepseek_v3"})
DEFAULT_KV_HEADS = {"glm": 2, "glm4": 2, "mistral": 8, "mixtral": 8, "qwen2_moe": 16, "qwen3_moe": 4}
DEFAULT_HEAD_DIM = {"glm": 128, "glm4": 128, "internlm3": 128, "qwen3": 128}
PFLOP_DAY = 8.64e19
TOKENS_PER_PARAMETER = 20.0


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a token leaves in the cache. `num_sites`: layers, twice for those that also keep their encoder's rows.

    `copies`: 2 for keys and values, 1 where one row is both.
    """

    num_sites: int
    num_kv_heads: int
    head_dim: int
    copies: int = 2

    @classmethod
    def read(cls, config: Keys) -> "CacheShape":
        """From config.json, in any family's words. Raises CheckpointError."""
        model_type = config.text("model_type", "")
        if model_type in ENCODERS:
            raise CheckpointError(f"a {model_type} keeps no cache: it reads a text once")
        num_layers = _first(
            config, "num_decoder_layers", "decoder_layers", "num_hidden_layers", "n_layer", "num_layers"
        )
        if model_type in LATENT:
            width = config.size("kv_lora_rank", 512) + config.size("qk_rope_head_dim", 64)
            return cls(num_layers, num_kv_heads=1, head_dim=width, copies=1)
        num_heads = _first(config, "decoder_attention_heads", "num_attention_heads", "n_head", "num_heads")
        width = _first(config, "hidden_size", "n_embd", "d_model")
        return cls(
            num_sites=num_layers * (2 if model_type in ENCODER_DECODERS else 1),
            num_kv_heads=_first(config, "num_key_value_heads", default=_kv_heads(config, model_type, num_heads)),
            head_dim=_first(
                config, "head_dim", "d_kv", "kv_channels", default=DEFAULT_HEAD_DIM.get(model_type, width // num_heads)
            ),
        )

    def bytes_per_token(self, dtype: str) -> int:
        return self.copies * self.num_sites * self.num_kv_heads * self.head_dim * BYTES[dtype]


def cache_plan(shape: CacheShape, *, batch_size: int, seq_len: int, dtype: str, page_size: int) -> dict[str, int | str]:
    """The memory of `batch_size` sequences of `seq_len` tokens; `allocated_bytes` are those of whole pages."""
    per_token = shape.bytes_per_token(dtype)
    num_pages = batch_size * -(-seq_len // page_size)
    total = batch_size * seq_len * per_token
    return {
        "bytes": total,
        "bytes_per_token": per_token,
        "bytes_per_sequence": seq_len * per_token,
        "num_pages": num_pages,
        "allocated_bytes": num_pages * page_size * per_token,
        "num_layers": shape.num_sites,
        "num_kv_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "dtype": dtype,
        "page_size": page_size,
        "formula": (
            f"{shape.copies} x {batch_size} sequences x {shape.num_sites} layers x {seq_len} tokens "
            f"x {shape.num_kv_heads} KV heads x {shape.head_dim} x {BYTES[dtype]} bytes = {total} bytes"
        ),
    }


def kaplan(compute: float | None, parameters: float | None, tokens: float | None) -> dict[str, float | str]:
    """The plan of one given quantity, by Kaplan's law: most of more arithmetic goes into parameters."""
    per_day = PFLOP_DAY / (6 * 1.3e9)
    if compute is not None:
        days = compute / PFLOP_DAY
    elif parameters is not None:
        days = (parameters / 1.3e9) ** (1 / 0.73)
    else:
        assert tokens is not None
        days = (tokens / per_day) ** (1 / 0.27)
    return {
        "parameters": 1.3e9 * days**0.73,
        "tokens": per_day * days**0.27,
        "compute_flops": days * PFLOP_DAY,
        "loss": (3.1e8 / days) ** 0.050,
        "formula": "N = 1.3e9 C^0.73, D = C / (6 N), L = (3.1e8 / C)^0.050, C in petaflop/s-days (8.64e19 operations)",
    }


def chinchilla(compute: float | None, parameters: float | None, tokens: float | None) -> dict[str, float | str]:
    """The plan of one given quantity, by Chinchilla's law: parameters and tokens grow alike."""
    if compute is not None:
        parameters = (compute / (6 * TOKENS_PER_PARAMETER)) ** 0.5
    elif parameters is None:
        assert tokens is not None
        parameters = tokens / TOKENS_PER_PARAMETER
    tokens = parameters * TOKENS_PER_PARAMETER
    return {
        "parameters": parameters,
        "tokens": tokens,
        "compute_flops": 6 * parameters * tokens,
        "loss": 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28,
        "formula": "N = (C / 120)^0.5, D = 20 N, C = 6 N D, L = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28",
    }


LAWS: Mapping[str, Callable[[float | None, float | None, float | None], dict[str, float | str]]] = {
    "chinchilla": chinchilla,
    "kaplan": kaplan,
}


def _kv_heads(config: Keys, model_type: str, num_heads: int) -> int:
    """How many there are where no usual key says: ChatGLM's groups, a family's own number, or one a query head."""
    if config.flag("multi_query_attention", False):
        return config.size("multi_query_group_num", 1)
    return num_heads if config.is_null("num_key_value_heads") else DEFAULT_KV_HEADS.get(model_type, num_heads)


def _first(config: Keys, *names: str, default: int | None = None) -> int:
    """The first of these keys that the config has, a whole number of at least 1."""
    for name in names:
        if name in config:
            return config.size(name)
    if default is None:
        raise CheckpointError(f"config.json says none of {', '.join(names)}")
    return default
