"""A mixture's routers are trained to spread rows evenly, by as much as transformers would, where its file says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tiny
from training.bench import Bench
from trefoil.training.attempt import recompute_layers
from trefoil.training.balance import balanced
from trefoil.training.batch import Example
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil_models import checkpoint

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe")
COEFFICIENT = 0.5
LENS = (9, 23, 14)


def _examples() -> list[Example]:
    return [Example(tuple(ids), (False, *[True] * (len(ids) - 1))) for ids in tiny.draw_ids(*LENS)]


def _theirs(folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """transformers' loss on the same rows, padded, and its gradients by our names."""
    oracle = tiny.oracle(folder)
    texts = [list(example.ids) for example in _examples()]
    longest = max(LENS) - 1
    ids = torch.tensor([[*text[:-1], *[0] * (longest + 1 - len(text))] for text in texts])
    labels = torch.tensor([[*text[1:], *[-100] * (longest + 1 - len(text))] for text in texts])
    mask = torch.tensor([[int(n < len(text) - 1) for n in range(longest)] for text in texts])
    said = oracle(ids, attention_mask=mask, use_cache=False)  # the file's own switch makes it tell its aux_loss
    loss = F.cross_entropy(said.logits.flatten(0, 1), labels.flatten())
    if said.aux_loss is not None:
        loss = loss + oracle.config.router_aux_loss_coef * said.aux_loss
    loss.backward()
    grads = {name: weight.grad for name, weight in oracle.named_parameters() if weight.grad is not None}
    return loss.detach(), tiny.published(folder, grads)


@pytest.mark.parametrize("keys", [{"router_aux_loss_coef": COEFFICIENT, "output_router_logits": True}, {}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_transformers(family: str, keys: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, family, **keys)
    wanted, grads = _theirs(folder)
    model = checkpoint.load(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    loss = balanced(causal_lm, model)(model, _examples())
    (loss.total / loss.weight).backward()
    torch.testing.assert_close(loss.total / loss.weight, wanted, rtol=1e-5, atol=1e-5)
    assert ("router_aux_loss" in loss.sums) == bool(keys)
    for name, parameter in model.named_parameters():
        file_name = name if name.startswith("lm_head.") else model.base_prefix + name
        torch.testing.assert_close(parameter.grad, grads[file_name], rtol=1e-4, atol=1e-5)


def test_recomputed_layers_have_the_same_gradient(tmp_path: Path) -> None:
    folder = tiny.checkpoint(tmp_path, "mixtral", output_router_logits=True, router_aux_loss_coef=COEFFICIENT)
    models = [checkpoint.load(folder) for _ in range(2)]
    recompute_layers(models[1])
    for model in models:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        balanced(causal_lm, model)(model, _examples()).total.backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_a_job_spreads_the_rows(bench: Bench, tmp_path: Path) -> None:
    """Trained for balance above all, routers end nearer to K, which even use gives, than they began."""
    keys = {"output_router_logits": True, "router_aux_loss_coef": 50.0}
    base = tiny.checkpoint(tmp_path / "base", "qwen3_moe", **keys)
    job = bench.run(base, "pretrain", [{"text": text} for text in tiny.SENTENCES], lora=None, n_epochs=8)
    events = [event.data for event in bench.store.jobs.events(job.id) if event.type == "metrics"]
    uneven = [data["router_aux_loss"] for data in events if data and "router_aux_loss" in data]
    assert uneven[-1] - 3 < 0.7 * (uneven[0] - 3)
