"""Unmodified clients on every understanding route: huggingface_hub's InferenceClient, and openai's embeddings."""

import base64
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from huggingface_hub import InferenceClient

import tiny_encoders
from e2e.serving import Server

TEXT = "the cat sat on the mat"


@pytest.fixture
def ask(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on loopback
    return lambda task: InferenceClient(model=f"{server.url}/v1/tasks/{task}", timeout=60)


def test_text_classification(ask) -> None:
    found = ask("text-classification").text_classification(TEXT)
    assert {one.label for one in found} == {"contradiction", "neutral", "entailment"}
    assert sum(one.score for one in found) == pytest.approx(1, abs=1e-4)
    assert len(ask("text-classification").text_classification(TEXT, top_k=1, function_to_apply="sigmoid")) == 1


def test_token_classification(ask) -> None:
    client = ask("token-classification")
    for one in client.token_classification(TEXT, ignore_labels=[]):
        assert TEXT[one.start : one.end] == one.word.removeprefix("Ġ")
        assert one.entity in ("O", "B-PER", "I-PER", "B-LOC")
    groups = client.token_classification(TEXT, aggregation_strategy="simple", ignore_labels=[], stride=3)
    assert all(one.entity_group in ("O", "PER", "LOC") for one in groups)


def test_question_answering(ask) -> None:
    client = ask("question-answering")
    found = client.question_answering("who sat?", TEXT)
    assert found.answer == TEXT[found.start : found.end]
    assert len(client.question_answering("who sat?", TEXT, top_k=3, max_answer_len=2)) == 3


def test_fill_mask(ask) -> None:
    found = ask("fill-mask").fill_mask("the [MASK] sat", top_k=4)
    assert len(found) == 4
    assert all(one.token_str in one.sequence for one in found)
    assert {one.token_str for one in ask("fill-mask").fill_mask("the [MASK] sat", targets=["cat", "dog"])} == {
        "cat",
        "dog",
    }


def test_feature_extraction(ask, folders: dict[str, Path]) -> None:
    found = ask("feature-extraction").feature_extraction(TEXT)
    words, model = tiny_encoders.words(folders["filler"]), tiny_encoders.oracle(folders["filler"])
    with torch.no_grad():
        wanted = model.bert(**words(TEXT, return_tensors="pt")).last_hidden_state.numpy()
    assert found == pytest.approx(wanted, abs=1e-4)


def test_sentence_similarity(ask) -> None:
    same, other = ask("sentence-similarity").sentence_similarity(TEXT, [TEXT, "one two three"])
    assert same == pytest.approx(1, abs=1e-5)
    assert other < same


def test_zero_shot_classification(ask) -> None:
    found = ask("zero-shot-classification").zero_shot_classification(TEXT, ["cats", "dogs"])
    assert {one.label for one in found} == {"cats", "dogs"}
    assert found[0].score >= found[1].score


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openai_embeddings(server: Server, folders: dict[str, Path], encoding: str) -> None:
    words, model = tiny_encoders.words(folders["filler"]), tiny_encoders.oracle(folders["filler"])
    with torch.no_grad():
        rows = model.bert(**words(TEXT, return_tensors="pt")).last_hidden_state[0]
    wanted = torch.nn.functional.normalize(rows.mean(0), dim=0).numpy()
    with openai.OpenAI(base_url=server.base_url, api_key="none") as client:
        answer = client.embeddings.create(model="filler", input=[TEXT, "dog"], encoding_format=encoding)
        short = client.embeddings.create(model="filler", input=TEXT, dimensions=8)
    first = answer.data[0].embedding
    vector = np.frombuffer(base64.b64decode(first), "<f4") if isinstance(first, str) else np.array(first)
    assert vector == pytest.approx(wanted, abs=1e-4)
    assert np.linalg.norm(short.data[0].embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == sum(len(words(text)["input_ids"]) for text in (TEXT, "dog"))


def test_a_decoder_is_an_embedder_by_its_last_token(http: httpx.Client, folders: dict[str, Path]) -> None:
    words = tiny_encoders.words(folders["writer"])
    model = tiny_encoders.oracle(folders["writer"])
    with torch.no_grad():
        last = model.model(**words(TEXT, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0, -1]
    answer = http.post("/v1/embeddings", json={"model": "writer", "input": TEXT}).json()
    assert answer["data"][0]["embedding"] == pytest.approx(
        torch.nn.functional.normalize(last, dim=0).tolist(), abs=1e-4
    )


def test_next_sentence_prediction(http: httpx.Client, folders: dict[str, Path]) -> None:
    words, model = tiny_encoders.words(folders["filler"]), tiny_encoders.oracle(folders["filler"])
    with torch.no_grad():
        shares = model(**words(TEXT, "the dog", return_tensors="pt")).seq_relationship_logits.softmax(-1)[0].tolist()
    body = {"inputs": {"text": TEXT, "text_pair": "the dog"}}
    ((first, second),) = http.post("/v1/tasks/next-sentence-prediction", json=body).json()
    found = {first["label"]: first["score"], second["label"]: second["score"]}
    assert found == pytest.approx({"IS_NEXT": shares[0], "NOT_NEXT": shares[1]}, abs=1e-4)


def test_pseudo_perplexity_masks_each_token(http: httpx.Client, folders: dict[str, Path]) -> None:
    words, model = tiny_encoders.words(folders["filler"]), tiny_encoders.oracle(folders["filler"])
    ids = words(TEXT, return_tensors="pt")["input_ids"][0]
    logprobs = []
    for row in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[row] = words.mask_token_id
        with torch.no_grad():
            logits = model(masked[None]).prediction_logits[0, row]
        logprobs.append(float(logits.log_softmax(-1)[ids[row]]))
    answer = http.post("/v1/tasks/perplexity", json={"inputs": TEXT, "model": "filler"}).json()
    assert answer["token_logprobs"][0] is answer["token_logprobs"][-1] is None
    assert answer["token_logprobs"][1:-1] == pytest.approx(logprobs, abs=1e-4)
    assert answer["nll"] == pytest.approx(-np.mean(logprobs), abs=1e-4)


def test_models_show_what_they_can_do(http: httpx.Client) -> None:
    shown = {entry["id"]: entry for entry in http.get("/v1/models").json()["data"]}
    assert shown["tagger"]["family"] == "encoder"
    assert "token-classification" in shown["tagger"]["tasks"]
    assert {"fill-mask", "next-sentence-prediction", "embeddings"} <= set(shown["filler"]["tasks"])
    assert "text-generation" not in shown["sorter"]["tasks"]
