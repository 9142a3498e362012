"""`--quantization fp8`: answers are those of transformers with weights that were rounded to 8-bit floats."""

import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from torch import Tensor

import tiny
from engine_world import generator, request, run
from trefoil import wire
from trefoil.errors import InvalidSetting
from trefoil.settings import Settings
from trefoil_kernels.cpu.calls import KINDS
from trefoil_kernels.cpu.library import Native, native
from trefoil_models import checkpoint
from trefoil_models.adapter_files import save_adapter
from trefoil_models.attend import packed_rows
from trefoil_models.lora import LoraShape, attach
from trefoil_models.packing import pack, pack_float8_on

KEPT = re.compile(r"(embed\w*|wte|wpe|norm|mlp\.gate|moe\.gate|kv_b_proj)\.weight$")
"""Matrices that are no linear layers, a router, and what latent attention reads as a matrix."""


def rounded(weight_FM: Tensor) -> Tensor:
    """Each row to the nearest of the numbers that e4m3 has between -448 and 448 of its scale."""
    scales_F1 = weight_FM.abs().amax(1, keepdim=True) / 448
    return (weight_FM / scales_F1).to(torch.float8_e4m3fn).float() * scales_F1


def rounded_folder(folder: Path) -> Path:
    """The same checkpoint with rounded weights, and a head of its own."""
    target = folder.with_name("rounded")
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    head = tensors.setdefault("lm_head.weight", tensors.get("transformer.wte.weight", torch.empty(0)))
    assert head.numel()
    is_conv1d = "transformer.wte.weight" in tensors
    for name, weight in tensors.items():
        if weight.dim() == 2 and not KEPT.search(name):
            is_turned = is_conv1d and not name.startswith("lm_head")
            tensors[name] = (rounded(weight.T).T if is_turned else rounded(weight)).contiguous()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return tiny.edit_config(target, lambda config: config.update(tie_word_embeddings=False))


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt2", "llama", "mixtral", "qwen2"])
@torch.no_grad()
def test_answers_are_those_of_rounded_weights(family: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path / "m", family)
    theirs = tiny.oracle(rounded_folder(folder))
    prompts = tiny.draw_ids(1, 9, 30)
    model = checkpoint.load(folder)
    pack(model, "fp8")
    for ids in prompts:
        logits_TV = model.lm_head.logits(model(*packed_rows([ids])))
        assert torch.allclose(logits_TV, tiny.oracle_logits(theirs, ids), atol=1e-4)
    engine = generator(folder, lay_out=pack_fp8, recorder=native())
    answers = run(engine, [request(str(n), ids, 16) for n, ids in enumerate(prompts)])
    for n, ids in enumerate(prompts):
        wanted = theirs.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None)
        assert answers[str(n), 0] == wanted[0, len(ids) :].tolist()


@pytest.mark.parametrize("is_on_gpu", [False, True], ids=["as a CPU has it", "as a GPU has it"])
def test_adapters_change_what_rounded_weights_say(is_on_gpu: bool, tmp_path: Path) -> None:
    folder, ids = tiny.checkpoint(tmp_path / "m", "llama"), [5, 6, 7]
    wrapped, shape = checkpoint.load(folder), LoraShape(r=3, alpha=4.0, targets=("all-linear",))
    for layer in attach(wrapped, shape, seed=1).values():
        torch.nn.init.normal_(layer.lora_up, 0, 0.3, generator=torch.Generator().manual_seed(len(layer.lora_up)))
    save_adapter(wrapped, tmp_path / "adapter", shape, base="base")
    engines = [
        generator(folder, lay_out=partial(pack_float8_on, device=torch.device("cpu")) if is_on_gpu else pack_fp8),
        generator(rounded_folder(folder)),
    ]
    told = []
    for engine in engines:
        engine.load_adapter(wire.LoadAdapter("own", str(tmp_path / "adapter")))
        params = wire.SamplingParams(max_tokens=12, temperature=0.0)
        told.append(run(engine, [wire.Generate(name or "base", ids, params, 0, name) for name in (None, "own")]))
    assert told[0] == told[1]
    assert told[0]["base", 0] != told[0]["own", 0]


def pack_fp8(model: Any) -> None:
    pack(model, "fp8")


def test_decode_steps_are_taped(tmp_path: Path, library: Native) -> None:
    if not library.products.packs(KINDS[torch.float8_e4m3fn]):
        pytest.skip("this processor has no AVX-512 VBMI: torch or plain products serve, untaped")
    folder = tiny.checkpoint(tmp_path / "m", "llama")
    asked = [request(str(n), ids, 20) for n, ids in enumerate(tiny.draw_ids(1, 9, 30))]
    called, taped = (
        generator(folder, lay_out=pack_fp8, recorder=recorder, dtype=torch.bfloat16) for recorder in (None, library)
    )
    with capture_logs() as logs:
        assert run(taped, asked) == run(called, asked)
    assert "no_tape" not in {log["event"] for log in logs}


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"device": "cuda", "quantization": "int8"}, "--quantization int8: must be fp8 with this --device"),
        ({"dtype": "float16", "quantization": "fp8"}, "--quantization fp8: must be on a CPU with --dtype auto"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: dict[str, str], allowed: str) -> None:
    with pytest.raises(InvalidSetting, match=allowed):
        Settings(models=(), **settings)
