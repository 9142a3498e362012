"""Every encoder family and head gives transformers' scores, ragged texts and pairs in one pass."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
import tiny_encoders
from trefoil_models import checkpoint
from trefoil_models.attend import packed_rows
from trefoil_models.config_keys import CheckpointError

LENS = (33, 1, 50, 7)


HEADS = {
    "Model": "hidden",
    "ForMaskedLM": "mask",
    "ForSequenceClassification": "class",
    "ForTokenClassification": "tag",
    "ForQuestionAnswering": "span",
    "ForNextSentencePrediction": "pair",
    "ForPreTraining": "pair",
}
CASES = [
    (family, head)
    for family in tiny_encoders.NAMES
    for head in HEADS
    if hasattr(transformers, tiny_encoders.NAMES[family] + head)
]


def their_scores(model: transformers.PreTrainedModel, head: str, ids: list[int], types: list[int]) -> torch.Tensor:
    """[L, width], or [1, width] from a head on the whole text."""
    given = {"token_type_ids": torch.tensor([types])} if any(types) else {}
    with torch.no_grad():
        out = model(torch.tensor([ids]), **given)
    if head == "span":
        return torch.stack([out.start_logits[0], out.end_logits[0]], -1)
    names = ("sop_logits", "seq_relationship_logits", "logits", "last_hidden_state")
    scores = next(out[name] for name in names if name in out)
    return scores[0] if scores.dim() == 3 else scores


@pytest.mark.parametrize(("family", "head"), CASES, ids=str)
def test_scores_are_transformers(tmp_path: Path, family: str, head: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, head)
    model, theirs, name = checkpoint.load(folder), tiny_encoders.oracle(folder), HEADS[head]
    sequences = tiny.draw_ids(*LENS, vocab=tiny_encoders.VOCAB - 4)
    sequences = [[token_id + 4 for token_id in ids] for ids in sequences]  # no padding among them
    num_types = getattr(theirs.config, "type_vocab_size", 1)
    types = [[int(num_types > 1 and at > len(ids) // 2) for at in range(len(ids))] for ids in sequences]
    rows, attend = packed_rows(sequences, types=types)
    with torch.no_grad():
        hidden_TM = model(rows, attend)
    for n, (ids, own) in enumerate(zip(sequences, types, strict=True)):
        start, end = attend.packing.starts[n : n + 2]
        asked_RM = hidden_TM[start : start + 1 if name in ("class", "pair") else end]
        ours = asked_RM if name == "hidden" else model.heads[name](asked_RM)
        assert (ours - their_scores(theirs, name, ids, own)).abs().max() < 1e-4


def rename(folder: Path, change) -> None:
    tensors = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")


def test_a_missing_head_is_reported_not_random(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForMaskedLM")
    tiny.edit_config(folder, lambda config: config.update(architectures=["BertForTokenClassification"]))
    with pytest.raises(CheckpointError, match=r"classifier\.weight is missing"):
        checkpoint.inspect(folder)


def test_old_norm_names_and_absent_prefix_load(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification")
    before = hidden(folder)
    rename(folder, lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").removeprefix("bert."))
    assert torch.equal(hidden(folder), before)


def hidden(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return checkpoint.load(folder)(*packed_rows(tiny.draw_ids(*LENS, vocab=tiny_encoders.VOCAB)))


def test_a_class_nobody_serves_is_named(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForMultipleChoice")
    with pytest.raises(CheckpointError, match="BertForMultipleChoice"):
        checkpoint.inspect(folder)


def test_labels_must_be_counted_through(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForTokenClassification")
    tiny.edit_config(folder, lambda config: config.update(id2label={"1": "A", "2": "B"}))
    with pytest.raises(CheckpointError, match="id2label"):
        checkpoint.inspect(folder)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_a_head_of_its_own_has_a_bias_of_its_own(tmp_path: Path, family: str) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, family, "ForMaskedLM", tie_word_embeddings=False)
    theirs, ids = tiny_encoders.oracle(folder), [5, 9, 6, 30]
    biases = [
        weight
        for name, weight in load_file(folder / "model.safetensors").items()
        if len(weight) == len(weight.flatten()) == tiny_encoders.VOCAB
    ]
    assert len(biases) == 2
    assert not torch.equal(*biases)
    rows, attend = packed_rows([ids])
    with torch.no_grad():
        model = checkpoint.load(folder)
        torch.testing.assert_close(
            model.heads["mask"](model(rows, attend)), theirs(torch.tensor([ids])).logits[0], rtol=0, atol=1e-4
        )
