"""One model definition, three uses: packed = chunked prefill + decode = any mix of both, for every family."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from trefoil.engine.scheduler import Chunk, Plan
from trefoil.engine.sequence import Sequence
from trefoil.engine.step import StepInputs
from trefoil.wire import SamplingParams
from trefoil_kernels.page_write import new_pages
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows

PAGE_SIZE, NUM_PAGES, LENS = 4, 64, (1, 9, 23, 40)
VARIANTS = {
    "deepseek_v2": {"q_lora_rank": None},
    "deepseek_v3": {},
    "llama": {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    "mistral": {"sliding_window": 7},
    "mixtral": {"sliding_window": 7},
    "chatglm": {"num_key_value_heads": 4},
    "glm": {"num_key_value_heads": 1},
    "glm4": {"attention_bias": False},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen2_moe": {"mlp_only_layers": [0]},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {"head_dim": 16},
    "deepseek": {},
    "internlm2": {"attention_bias": True},
    "baichuan": {},
    "internlm": {},
    "internlm3": {"attention_bias": True, "mlp_bias": True},
    "gpt3": {},
    "gpt_neo": {},
    "openai-gpt": {},
    "qwen": {"max_position_embeddings": 16},
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_any_mix_of_chunks_and_decodes_is_the_packed_pass(tmp_path: Path, family: str, seed: int) -> None:
    model = checkpoint.load(tiny.checkpoint(tmp_path, family, **VARIANTS[family]))
    sequences = tiny.draw_ids(*LENS, seed=seed)
    with torch.inference_mode():
        packed_TM = model(*packed_rows(sequences))
        paged_TM = torch.cat(paged(model, sequences, random.Random(seed)))
    assert (packed_TM - paged_TM).abs().max() < 2e-5


def paged(model: checkpoint.Model, sequences: list[list[int]], dice: random.Random) -> list[Tensor]:
    """Hidden rows of each sequence, computed in random chunks of random sequences over scattered, dirty pages."""
    free = list(range(NUM_PAGES))
    dice.shuffle(free)
    pages = [
        new_pages(
            NUM_PAGES,
            PAGE_SIZE,
            site.kv_heads,
            site.head_dim,
            is_latent=site.is_latent,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        for site in model.sites
    ]
    for site in pages:
        site.k_PSGD.fill_(torch.nan)
        site.v_PSGD.fill_(torch.nan)
    inputs = StepInputs(
        max_rows=sum(LENS), max_sequences=len(LENS), max_pages=16, page_size=PAGE_SIZE, device=torch.device("cpu")
    )
    open_ = [as_sequence(ids, [free.pop() for _ in range(-(-len(ids) // PAGE_SIZE))]) for ids in sequences]
    hidden: list[list[Tensor]] = [[] for _ in sequences]
    while any(one.num_left for one in open_):
        picked = [n for n, one in enumerate(open_) if one.num_left and dice.random() < 0.7]
        dice.shuffle(picked)
        chunks = []
        for n in picked:
            start = open_[n].computed
            open_[n].computed = start + dice.choice([1, 1, dice.randint(1, open_[n].num_left)])
            chunks.append(Chunk(open_[n], start, open_[n].computed, ()))
        if chunks:
            rows, attend = inputs.build(Plan(chunks, []), pages)
            for n, part in zip(picked, model(rows, attend).split(attend.packing.lens), strict=True):
                hidden[n].append(part)
    return [torch.cat(parts) for parts in hidden]


def as_sequence(ids: list[int], pages: list[int]) -> Sequence:
    return Sequence(
        request_id="",
        index=0,
        ids=ids,
        prompt_len=len(ids),
        params=SamplingParams(max_tokens=1),
        priority=0,
        arrival=0,
        random=None,  # type: ignore[arg-type]
        pages=pages,
    )
