"""The bundled demo encoder-decoder as `make serve` serves it: small, and as good as its card says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import trefoil_models
from e2e.serving import Server
from trefoil_demo import rewriting, understanding
from trefoil_demo.ask_rewriter import REWRITER, http_rewriter

FOLDER = Path(trefoil_models.__file__).parent / "demo" / "encoder-decoder"
FLOORS = {"translate": 0.95, "summarize": 0.95, "sentiment": 0.95, "question": 0.95, "gap": 0.9}
STORY = "Anna lives in Paris. Anna has a dog. Anna likes the colour red."


@pytest.fixture(scope="module")
def client(demo: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo.url, timeout=200) as client:
        yield client


def test_the_folder_is_complete_and_at_most_ten_megabytes() -> None:
    wanted = {"config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer_config.json"}
    assert {path.name for path in FOLDER.iterdir()} == wanted | {"README.md"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10_000_000


@pytest.mark.parametrize(
    ("task", "inputs", "parameters", "wanted"),
    [
        ("translation", "Anna lives in Paris.", {"src_lang": "en", "tgt_lang": "zh"}, "安娜住在巴黎。"),
        ("translation", "安娜住在巴黎。", {"src_lang": "zh", "tgt_lang": "en"}, "Anna lives in Paris."),
        ("summarization", STORY, {}, "Anna lives in Paris and has a dog."),
        ("text2text-generation", "sentiment: What a wonderful film!", {}, "positive"),
        ("text2text-generation", f"question: Where does Anna live? context: {STORY}", {}, "Paris"),
    ],
    ids=["to Chinese", "to English", "summary", "sentiment", "question"],
)
def test_each_task_is_answered(
    client: httpx.Client, task: str, inputs: str, parameters: dict[str, str], wanted: str
) -> None:
    answer = client.post(f"/v1/tasks/{task}", json={"inputs": inputs, "parameters": parameters}).raise_for_status()
    (said,) = answer.json()[0].values()
    assert said == wanted


def test_gaps_are_filled_in_both_languages(client: httpx.Client) -> None:
    filled: Any = client.post(
        "/v1/tasks/span-filling", json={"inputs": ["The capital of France is ___.", "___的首都是巴黎。"]}
    )
    assert [one["text"] for one in filled.json()] == ["The capital of France is Paris.", "法国的首都是巴黎。"]


def test_candidates_differ(client: httpx.Client) -> None:
    body = {"inputs": "___ is the opposite of hot.", "parameters": {"num_candidates": 4}}
    texts = [one["text"] for one in client.post("/v1/tasks/span-filling", json=body).json()["candidates"]]
    assert len(set(texts)) == len(texts) == 4
    assert texts[0] == "Cold is the opposite of hot."


def test_a_translation_is_streamed(demo: Server) -> None:
    with openai.OpenAI(base_url=demo.base_url, api_key="none", max_retries=0) as sdk:
        messages: Any = [{"role": "user", "content": "translate English to Chinese: Anna lives in Paris."}]
        stream = sdk.chat.completions.create(model=REWRITER, messages=messages, temperature=0, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == "安娜住在巴黎。"
    assert len(pieces) > 3


def test_what_was_held_out_is_answered_as_well_as_the_card_says(client: httpx.Client) -> None:
    verdicts = rewriting.judge(http_rewriter(client))
    assert understanding.accuracy(verdicts) >= 0.95, understanding.table(verdicts)
    for task, floor in FLOORS.items():
        own = [one for one in verdicts if one.task == task]
        assert understanding.accuracy(own) >= floor, understanding.table(own)
