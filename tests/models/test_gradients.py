"""A packed pass carries gradients to every parameter of every family, and they are transformers' gradients."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows

UNUSED_PAD = {"pad_token_id": tiny.VOCAB - 1}
"""transformers gives the padding's embedding no gradient."""
VARIANTS = {
    "deepseek_v2": ("deepseek_v2", {}),
    "deepseek_v2 lite": ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "n_routed_experts": 4}),
    "deepseek_v3": ("deepseek_v3", {}),
    "chatglm": ("chatglm", UNUSED_PAD),
    "glm": ("glm", UNUSED_PAD),
    "glm4": ("glm4", {**UNUSED_PAD, "attention_bias": False}),
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2_moe": ("qwen2_moe", {"num_experts": 4}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4}),
    "baichuan": ("baichuan", {}),
    "gpt_neo": ("gpt_neo", {}),
    "openai-gpt": ("openai-gpt", {}),
    "internlm": ("internlm", {}),
    "internlm3": ("internlm3", {"attention_bias": True, "mlp_bias": True}),
    "qwen": ("qwen", {}),
    "internlm2": ("internlm2", {"attention_bias": True}),
}


def our_gradients(folder: Path, sequences: list[list[int]]) -> dict[str, Tensor]:
    """Of the summed loss of every next token, by the names and layouts that files have."""
    model = checkpoint.load(folder)
    for parameter in model.parameters():
        parameter.requires_grad_()
    rows, attend = packed_rows(sequences)
    last_T = (rows.positions_T + 1 == rows.prompt_lens_T).nonzero()[:, 0].tolist()
    asked_T = torch.tensor([row for row in range(len(rows.ids_T)) if row not in last_T])
    (-model.lm_head.logprobs(model(rows, attend)[asked_T], rows.ids_T[asked_T + 1])).sum().backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        is_turned = any(name.endswith("." + suffix) for suffix in model.transposed)
        file_name = model.vocab_matrix if name.startswith("lm_head.") else model.base_prefix + name
        gradients[file_name] = parameter.grad.T if is_turned else parameter.grad
    return gradients


def their_gradients(folder: Path, sequences: list[list[int]]) -> dict[str, Tensor]:
    oracle = tiny.oracle(folder)
    for ids in sequences:
        logits = oracle(torch.tensor([ids]), use_cache=False).logits[0]
        F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").backward()
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    return tiny.published(folder, gradients)


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_match_transformers(name: str, tmp_path: Path) -> None:
    family, config = VARIANTS[name]
    folder, sequences = tiny.checkpoint(tmp_path, family, std=0.1, **config), tiny.draw_ids(37, 5, 9)
    ours, theirs = our_gradients(folder, sequences), their_gradients(folder, sequences)
    assert ours.keys() == theirs.keys()
    for key, wanted in theirs.items():
        assert (ours[key] - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max())), key


@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_reach_every_parameter(name: str, tmp_path: Path) -> None:
    family, config = VARIANTS[name]
    gradients = our_gradients(tiny.checkpoint(tmp_path, family, **config), tiny.draw_ids(67, 5, 9))
    assert [key for key, gradient in gradients.items() if not (gradient.isfinite().all() and gradient.any())] == []


def test_an_expert_that_no_row_chose_has_a_gradient_of_zeros(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "mixtral", num_local_experts=9, num_experts_per_tok=1)
    gradients = our_gradients(folder, tiny.draw_ids(4))
    assert any(".experts." in name and not gradient.any() for name, gradient in gradients.items())
