"""InternLM 2's reward models: one output, read at the token that asks for it."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import tiny
from trefoil.engine.tasks import tasks_of
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows


def reward_model(folder: Path) -> Path:
    """As the released ones are: the head is called v_head, and config.json counts no labels."""
    tiny.checkpoint(folder, "internlm2", head="ForSequenceClassification", num_labels=1)
    tensors = load_file(folder / "model.safetensors")
    tensors["v_head.weight"] = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tiny.edit_config(
        folder, lambda config: config.update(architectures=["InternLM2ForRewardModel"], reward_token_id=7)
    )


def test_a_reward_model_scores_the_token_that_asks(tmp_path: Path) -> None:
    folder = reward_model(tmp_path)
    blueprint, ids = checkpoint.inspect(folder), [*tiny.draw_ids(12)[0], 7]
    model = blueprint.load(dtype=torch.float32)
    peer = AutoModelForSequenceClassification.from_pretrained(folder / tiny.PEER, dtype=torch.float32)
    with torch.no_grad():
        hidden_TM = model(*packed_rows([ids]))
        wanted = peer.score(peer.model(torch.tensor([ids])).last_hidden_state[0, -1])
    assert (model.heads["class"](hidden_TM[-1:])[0] - wanted).abs().max() < 1e-4
    assert tasks_of(blueprint.folder, model.kind, blueprint.heads)[0] == ("text-classification", "rerank", "reward")
    assert blueprint.folder.eos_ids == (7,)
