"""Summarization, translation, text2text-generation, span filling and the OpenAI routes on encoder-decoders."""

from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from huggingface_hub import InferenceClient
from transformers import AutoTokenizer

import tiny_pairs
from e2e.serving import Server

TEXT = "the cat sat on the mat"
TASKS = "/v1/tasks/"


def ask(http: httpx.Client, task: str, inputs: Any, model: str = "t5", **parameters: Any) -> Any:
    answer = http.post(TASKS + task, json={"inputs": inputs, "parameters": parameters, "model": model})
    assert answer.is_success, answer.text
    return answer.json()


def refused(http: httpx.Client, task: str, inputs: Any, **parameters: Any) -> dict[str, Any]:
    answer = http.post(TASKS + task, json={"inputs": inputs, "parameters": parameters, "model": "t5"})
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@cache
def oracle(folder: Path) -> tuple[Any, Any]:
    return tiny_pairs.oracle(folder), AutoTokenizer.from_pretrained(folder)


def theirs(folder: Path, text: str, **options: Any) -> list[str]:
    """What transformers' generate says."""
    model, words = oracle(folder)
    source = torch.tensor([words(text)["input_ids"]])
    out = model.generate(source, do_sample=False, **options)
    start = out.shape[1] - out[:, 1:].shape[1]
    return [words.decode(ids[start:], skip_special_tokens=True) for ids in out.tolist()]


def test_summaries_follow_the_folders_wishes(http: httpx.Client, folders: dict[str, Path]) -> None:
    (wanted,) = theirs(folders["t5"], "sum: " + TEXT, num_beams=3, max_length=20, no_repeat_ngram_size=2)
    assert ask(http, "summarization", TEXT) == [{"summary_text": wanted}]
    assert ask(http, "summarization", [TEXT, TEXT]) == [{"summary_text": wanted}] * 2


def test_parameters_rule_over_the_folders_wishes(http: httpx.Client, folders: dict[str, Path]) -> None:
    (wanted,) = theirs(folders["t5"], "sum: " + TEXT, num_beams=1, max_new_tokens=7, no_repeat_ngram_size=0)
    given = {"num_beams": 1, "max_new_tokens": 7, "no_repeat_ngram_size": 0}
    assert ask(http, "summarization", TEXT, **given) == [{"summary_text": wanted}]
    assert ask(http, "summarization", TEXT, generate_kwargs=given) == [{"summary_text": wanted}]
    assert ask(http, "summarization", TEXT, generate_parameters=given) == [{"summary_text": wanted}]


def test_translation_takes_the_prefix_of_its_languages(http: httpx.Client, folders: dict[str, Path]) -> None:
    for language, prefix in (("de", "to German: "), ("fr", "to French: ")):
        (wanted,) = theirs(folders["t5"], prefix + TEXT, max_length=12)
        assert ask(http, "translation", TEXT, src_lang="en", tgt_lang=language) == [{"translation_text": wanted}]
    assert refused(http, "translation", TEXT)["param"] == "parameters.tgt_lang"
    assert refused(http, "translation", TEXT, src_lang="xx", tgt_lang="de")["param"] == "parameters.src_lang"


@pytest.mark.parametrize("model", ["t5", "bart"])
def test_text2text_returns_as_many_answers_as_asked(http: httpx.Client, folders: dict[str, Path], model: str) -> None:
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 9, "length_penalty": 0.5}
    wanted = theirs(folders[model], TEXT, **options)
    found = ask(http, "text2text-generation", TEXT, model, **options)
    assert [one["generated_text"] for one in found] == wanted


def test_hugging_face_client_summarises_and_translates(
    server: Server, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for task in ("summarization", "translation"):
        client = InferenceClient(model=f"{server.url}/v1/tasks/{task}?model=t5")
        if task == "summarization":
            wanted = theirs(folders["t5"], "sum: " + TEXT, num_beams=3, max_length=20, no_repeat_ngram_size=2)[0]
            assert client.summarization(TEXT).summary_text == wanted
        else:
            wanted = theirs(folders["t5"], "to German: " + TEXT, max_length=12)[0]
            assert client.translation(TEXT, src_lang="en", tgt_lang="de").translation_text == wanted


def test_openai_routes_answer_with_what_the_encoder_read(server: Server, folders: dict[str, Path]) -> None:
    (wanted,) = theirs(folders["t5"], TEXT, max_new_tokens=9)
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as sdk:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXT}]
        chat = sdk.chat.completions.create(model="t5", messages=messages, temperature=0, max_tokens=9)
        assert chat.choices[0].message.content == wanted
        text = sdk.completions.create(model="t5", prompt=TEXT, temperature=0, max_tokens=9)
        assert text.choices[0].text == wanted
        assert text.usage.prompt_tokens == len(AutoTokenizer.from_pretrained(folders["t5"])(TEXT)["input_ids"])
        chunks = sdk.completions.create(model="t5", prompt=TEXT, temperature=0, max_tokens=9, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == wanted


def test_beam_search_on_openai_routes(http: httpx.Client, folders: dict[str, Path]) -> None:
    wanted = theirs(folders["t5"], TEXT, num_beams=4, num_return_sequences=2, max_new_tokens=9, length_penalty=2.0)
    body = {"model": "t5", "prompt": TEXT, "max_tokens": 9, "n": 2, "use_beam_search": True, "length_penalty": 2.0}
    for width in ({"beam_width": 4}, {}):
        answer = http.post("/v1/completions", json={**body, **width}).json()
        assert [choice["text"] for choice in answer["choices"]] == wanted
    chunks = http.post("/v1/completions", json={**body, "stream": True}).text
    assert chunks.rstrip().endswith("[DONE]")


def test_every_gap_is_filled_within_bounds(http: httpx.Client) -> None:
    for text in ("the <extra_id_0> sat on <extra_id_1>.", "the ___ sat on ____."):
        answer = ask(http, "span-filling", text, num_candidates=3, max_span_tokens=5)
        assert answer["text"] == answer["candidates"][0]["text"]
        texts = [candidate["text"] for candidate in answer["candidates"]]
        assert 1 <= len(set(texts)) == len(texts) <= 3
        scores = [candidate["score"] for candidate in answer["candidates"]]
        assert scores == sorted(scores, reverse=True)
        assert 0 < scores[0] <= 1
        for candidate in answer["candidates"]:
            assert [span["index"] for span in candidate["spans"]] == [0, 1]
            assert candidate["text"].startswith("the ")
            assert candidate["text"].endswith(".")
            assert "extra_id" not in candidate["text"]
            assert "___" not in candidate["text"]


def test_long_spans_are_welcome(http: httpx.Client) -> None:
    span = ask(http, "span-filling", "the ___", max_span_tokens=60)["spans"][0]
    assert 0 < span["score"] <= 1


def test_all_sentinels_but_one_may_mark_gaps(http: httpx.Client) -> None:
    """The last one ends the last span."""
    assert len(ask(http, "span-filling", " ".join(["___"] * 7), max_span_tokens=2)["spans"]) == 7


@pytest.mark.parametrize(
    ("text", "parameters", "param"),
    [
        ("no gap here", {}, "inputs"),
        (" ".join(["___"] * 8), {}, "inputs"),
        ("<extra_id_1> first", {}, "inputs"),
        ("<extra_id_0> and ___", {}, "inputs"),
        ("x ___", {"max_span_tokens": 0}, "parameters.max_span_tokens"),
        ("x ___", {"max_span_tokens": 1000}, "parameters.max_span_tokens"),
        ("x ___", {"num_candidates": 0}, "parameters.num_candidates"),
        ("word " * 200 + "___", {}, "inputs"),
    ],
)
def test_gaps_that_cannot_be_filled_are_refused(
    http: httpx.Client, text: str, parameters: dict[str, Any], param: str
) -> None:
    assert refused(http, "span-filling", text, **parameters)["param"] == param


def test_too_long_an_input_is_refused_or_cut_as_asked(http: httpx.Client) -> None:
    error = refused(http, "summarization", "word " * 200)
    assert (error["param"], error["code"]) == ("inputs", "context_length_exceeded")
    assert ask(http, "summarization", "word " * 200, truncation="only_first")


def test_contradictions_are_refused_by_name(http: httpx.Client) -> None:
    assert refused(http, "text2text-generation", TEXT, num_return_sequences=2)["param"].endswith("num_return_sequences")
    assert refused(http, "text2text-generation", TEXT, num_beams=2, do_sample=True)["param"].endswith("do_sample")
    assert refused(http, "text2text-generation", TEXT, colour="red")["param"] == "parameters.colour"


def test_a_target_is_scored_given_its_text(http: httpx.Client, folders: dict[str, Path]) -> None:
    model, words = oracle(folders["t5"])
    source, target = (words(text)["input_ids"] for text in (TEXT, "one two"))
    _, logits = tiny_pairs.oracle_answers(model, [source], [[tiny_pairs.START, *target]])
    wanted = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(target)[:, None])[:, 0]
    answer = ask(http, "perplexity", {"text": TEXT, "target": "one two"})
    assert answer["token_logprobs"] == pytest.approx(wanted.tolist(), abs=1e-4)
    assert answer["nll"] == pytest.approx(-wanted.mean().item(), abs=1e-4)
    assert refused(http, "perplexity", TEXT)["param"] == "inputs"


def test_models_say_what_they_can_do(http: httpx.Client) -> None:
    about = {entry["id"]: entry for entry in http.get("/v1/models").json()["data"]}
    assert about["t5"]["family"] == "encoder-decoder"
    assert "span-filling" in about["t5"]["tasks"]
    assert "span-filling" not in about["bart"]["tasks"]
    assert about["t5"]["max_model_len"] == 128


def test_prompt_scores_are_refused(http: httpx.Client) -> None:
    body = {"model": "t5", "prompt": TEXT, "max_tokens": 1}
    for field in ({"prompt_logprobs": 1}, {"echo": True, "logprobs": 1}):
        assert http.post("/v1/completions", json={**body, **field}).status_code == 400
    no_user = {"model": "t5", "messages": [{"role": "system", "content": "x"}]}
    assert http.post("/v1/chat/completions", json=no_user).json()["error"]["param"] == "messages"


def test_pretraining_takes_the_objective_that_the_tokenizer_has_marks_for(client: openai.OpenAI) -> None:
    rows = b'{"text": "the cat sat on the mat"}\n'
    file_id = client.files.create(file=("texts.jsonl", rows), purpose="fine-tune").id

    def submit(model: str, **method: str) -> Any:
        given: Any = {"type": "pretrain", **method}
        return client.fine_tuning.jobs.create(model=model, training_file=file_id, method=given)

    for model, objective in (("t5", "span_corruption"), ("bart", "text_infilling")):
        job = submit(model)
        assert job.hyperparameters.model_extra["objective"] == objective
        client.fine_tuning.jobs.cancel(job.id)
    for model, objective, lacking in (("bart", "span_corruption", "sentinels"), ("t5", "text_infilling", "mask token")):
        with pytest.raises(openai.BadRequestError, match=lacking) as raised:
            submit(model, objective=objective)
        assert raised.value.param == "model"
