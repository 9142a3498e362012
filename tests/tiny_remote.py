"""Families that transformers has no class for: the class of it that computes the same, and how their files say that.

A checkpoint is written as the peer's and then as the family's own: its config.json, its names, its fused projections.
The mappings are linear, so they turn the peer's gradients into the family's too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
Tensors = dict[str, Tensor]
MIXTRALS_OWN = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True)
class Remote:
    """`peer` is transformers' family; config and tensors are made of its own (tensors of both dictionaries).

    `prepare` makes of a peer's drawn tensors such as the family can express.
    """

    peer: str
    config: Callable[[Config], Config]
    tensors: Callable[[Config, Tensors], Tensors]
    settings: Config
    prepare: Callable[[Tensors], Tensors] | None = None


def renamed(tensors: Tensors, *names: tuple[str, str]) -> Tensors:
    """With parts of their names replaced, first come first served."""
    out = {}
    for name, tensor in tensors.items():
        for old, new in names:
            name = name.replace(old, new)
        out[name] = tensor
    return out


def fused(tensors: Tensors, name: str, join: Callable[[list[Tensor]], Tensor]) -> Tensors:
    """The projections of queries, keys and values as one of this name, weights and biases."""
    out = {key: tensor for key, tensor in tensors.items() if not any(f".{part}_proj." in key for part in "qkv")}
    for key in tensors:
        if ".q_proj." in key:
            parts = [tensors[key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            out[key.replace("q_proj", name)] = join(parts)
    return out


def each_expert(config: Config, tensors: Tensors) -> Tensors:
    """Files have each expert by itself, and Mixtral's by other names; transformers holds all of a layer in one."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".experts.")
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}.get(leaf, ())
        if not path or not parts:
            out[name] = tensor
            continue
        for number, own in enumerate(tensor):
            for part, half in zip(parts, own.chunk(len(parts)), strict=True):
                out[f"{path}.experts.{number}.{part}.weight"] = half
    if config["model_type"] != "mixtral":
        return out
    return renamed(out, (".mlp.", ".block_sparse_moe."), *zip(MIXTRALS_OWN.values(), MIXTRALS_OWN, strict=True))


def common(config: Config) -> Config:
    """The keys that llama's relatives share, in the Hub's dialect."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("rms_norm_eps", "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_id")
    return {"torch_dtype": "float32", **{name: config[name] for name in names}}


def _internlm2(config: Config) -> Config:
    rope = dict(config["rope_parameters"])
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    return {
        **common(config),
        "model_type": "internlm2",
        "architectures": [config["architectures"][0].replace("Llama", "InternLM2")],
        "num_key_value_heads": config["num_key_value_heads"],
        "max_position_embeddings": config["max_position_embeddings"],
        "bias": config["attention_bias"],
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
    }


def _internlm2_tensors(config: Config, tensors: Tensors) -> Tensors:
    kv_heads, width = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]

    def by_kv_head(parts: list[Tensor]) -> Tensor:
        return torch.cat([part.unflatten(0, (kv_heads, -1, width)) for part in parts], 1).flatten(0, 2)

    return renamed(
        fused(tensors, "wqkv", by_kv_head),
        *(("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("self_attn", "attention"), ("o_proj", "wo")),
        *(("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"), ("mlp", "feed_forward")),
        *(("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")),
    )


def _baichuan(config: Config) -> Config:
    """The first model of 7B, whose class alone is spelled with a capital C."""
    longest = {"max_position_embeddings": config["max_position_embeddings"]}
    return {**common(config), **longest, "model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]}


def _baichuan_tensors(config: Config, tensors: Tensors) -> Tensors:
    return fused(tensors, "W_pack", torch.cat)


def _chatglm(config: Config) -> Config:
    """As ChatGLM 2 and 3 and GLM-4 say it."""
    return {
        "model_type": "chatglm",
        "architectures": [
            config["architectures"][0].replace("Glm", "ChatGLM").replace("CausalLM", "ConditionalGeneration")
        ],
        "torch_dtype": "float32",
        "num_layers": config["num_hidden_layers"],
        "padded_vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "ffn_hidden_size": config["intermediate_size"],
        "kv_channels": config["head_dim"],
        "num_attention_heads": config["num_attention_heads"],
        "multi_query_attention": True,
        "multi_query_group_num": config["num_key_value_heads"],
        "seq_length": config["max_position_embeddings"],
        "layernorm_epsilon": config["rms_norm_eps"],
        "rope_ratio": config["rope_parameters"]["rope_theta"] / 10000,
        "add_qkv_bias": config["attention_bias"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
    }


def _chatglm_tensors(config: Config, tensors: Tensors) -> Tensors:
    out = renamed(
        fused(tensors, "query_key_value", torch.cat),
        *(("model.embed_tokens", "transformer.embedding.word_embeddings"), ("lm_head", "transformer.output_layer")),
        *(("model.norm", "transformer.encoder.final_layernorm"), ("model.layers", "transformer.encoder.layers")),
        *(("self_attn", "self_attention"), ("o_proj", "dense")),
        *(("gate_up_proj", "dense_h_to_4h"), ("down_proj", "dense_4h_to_h"), ("score", "classifier_head")),
    )
    if "classifier_head.weight" in out:
        out["classifier_head.bias"] = torch.zeros(len(out["classifier_head.weight"]))
    return out


def _qwen(config: Config) -> Config:
    """As September's release says it; both remedies for long prompts begin where the tests' sequences end."""
    shared, longest = common(config), config["max_position_embeddings"]
    eps = shared.pop("rms_norm_eps")
    return {
        **shared,
        "model_type": "qwen",
        "architectures": ["QWenLMHeadModel"],
        "intermediate_size": 2 * shared["intermediate_size"],
        "layer_norm_epsilon": eps,
        "kv_channels": shared["hidden_size"] // shared["num_attention_heads"],
        "max_position_embeddings": longest,
        "seq_length": longest,
    }


def _qwen_tensors(config: Config, tensors: Tensors) -> Tensors:
    return renamed(
        fused(tensors, "c_attn", torch.cat),
        *(
            ("model.", "transformer."),
            ("embed_tokens", "wte"),
            ("layers", "h"),
            ("transformer.norm", "transformer.ln_f"),
        ),
        *(
            ("self_attn", "attn"),
            ("o_proj", "c_proj"),
            ("input_layernorm", "ln_1"),
            ("post_attention_layernorm", "ln_2"),
        ),
        *(("gate_proj", "w2"), ("up_proj", "w1"), ("down_proj", "c_proj")),
    )


def _deepseek(config: Config) -> Config:
    names = ("num_key_value_heads", "max_position_embeddings", "moe_intermediate_size", "num_experts_per_tok")
    return {
        **common(config),
        **{name: config[name] for name in (*names, "norm_topk_prob")},
        "model_type": "deepseek",
        "architectures": ["DeepseekForCausalLM"],
        "rope_theta": config["rope_parameters"]["rope_theta"],
        "n_routed_experts": config["num_experts"],
        "n_shared_experts": config["shared_expert_intermediate_size"] // config["moe_intermediate_size"],
        "first_k_dense_replace": len(config["mlp_only_layers"]),
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
    }


def _deepseek_peer(tensors: Tensors) -> Tensors:
    """A gate of zeros counts every row's shared expert by half; `_deepseek_tensors` puts that into its weight."""
    return {name: tensor.zero_() if "shared_expert_gate" in name else tensor for name, tensor in tensors.items()}


def _deepseek_tensors(config: Config, tensors: Tensors) -> Tensors:
    out = {name: tensor for name, tensor in tensors.items() if "shared_expert_gate" not in name}
    halved = {name: tensor / 2 for name, tensor in out.items() if name.endswith("shared_expert.down_proj.weight")}
    return renamed(out | halved, ("shared_expert.", "shared_experts."))


def _gpt3(config: Config) -> Config:
    """GPT-2's keys, and which layers are local."""
    names = {"n_embd": "hidden_size", "n_layer": "num_layers", "n_head": "num_heads"}
    names |= {"n_positions": "max_position_embeddings"}
    kept = ("vocab_size", "window_size", "attention_layers", "tie_word_embeddings", "bos_token_id", "eos_token_id")
    about = {"model_type": "gpt3", "architectures": ["GPT3LMHeadModel"], "torch_dtype": "float32"}
    return {**about, **{name: config[own] for name, own in names.items()}, **{name: config[name] for name in kept}}


def _gpt3_tensors(config: Config, tensors: Tensors) -> Tensors:
    """GPT-Neo scales no scores, so its queries are that much larger, and has no biases there."""
    scale = (config["hidden_size"] // config["num_heads"]) ** 0.5
    tensors = {name: x * scale if ".q_proj." in name else x for name, x in tensors.items()}
    tensors = renamed(fused(tensors, "c_attn", torch.cat), ("attn.attention.", "attn."), ("out_proj", "c_proj"))
    ends = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {name: x.T if name.endswith(ends) else x for name, x in tensors.items()}
    fresh = {name: x.new_zeros(x.shape[1]) for name, x in tensors.items() if name.endswith("c_attn.weight")}
    return {**tensors, **{name.replace("weight", "bias"): x for name, x in fresh.items()}}


def _internlm(config: Config) -> Config:
    rope = config["rope_parameters"]
    return {
        **common(config),
        "model_type": "internlm",
        "architectures": ["InternLMForCausalLM"],
        "max_position_embeddings": config["max_position_embeddings"],
        "bias": config["attention_bias"],
        "rotary": {"base": rope["rope_theta"], "type": "dynamic", "scaling_factor": rope.get("factor", 1.0)},
    }


FAMILIES = {
    "internlm": Remote(
        "llama", _internlm, lambda config, tensors: tensors, {"num_key_value_heads": 4, "attention_bias": True}
    ),
    "deepseek": Remote(
        "qwen2_moe",
        _deepseek,
        _deepseek_tensors,
        {"shared_expert_intermediate_size": 40, "mlp_only_layers": [0], "qkv_bias": False},
        _deepseek_peer,
    ),
    "chatglm": Remote("glm", _chatglm, _chatglm_tensors, {}),
    "gpt3": Remote("gpt_neo", _gpt3, _gpt3_tensors, {}),
    "qwen": Remote("qwen2", _qwen, _qwen_tensors, {"num_key_value_heads": 4}),
    "baichuan": Remote("llama", _baichuan, _baichuan_tensors, {"num_key_value_heads": 4}),
    "internlm2": Remote("llama", _internlm2, _internlm2_tensors, {}),
}
