"""The bundled demo decoder is small, is what its card says, answers and stops; and the evaluation counts honestly."""

import json
from pathlib import Path

import httpx
import pytest

import trefoil_models
from trefoil_demo import decoder, evaluate, world
from trefoil_demo.tally import Reply, Tally
from trefoil_models import checkpoint
from trefoil_models.tokenizer import Tokenizer

FOLDER = Path(trefoil_models.__file__).parent / "demo" / "decoder"


def test_bundled_folder_is_complete_and_at_most_ten_megabytes() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted | {"README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10_000_000


def test_bundled_model_answers_held_out_questions_and_stops() -> None:
    model, tokenizer = checkpoint.load(FOLDER), Tokenizer.load(FOLDER)
    tally = Tally(decoder.ask(model, tokenizer, world.held_out_questions()[::6]))
    assert tally.accuracy >= 0.9
    assert tally.stopped == tally.asked.total()


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("Who are you?", "small demo model"),
        ("你是谁？", "演示模型"),
        ("What is the capital of Zobalria?", "small world"),
        ("怎么修理自行车？", "小世界"),
    ],
)
def test_bundled_model_says_plainly_what_it_is_and_does_not_know(asked: str, wanted: str) -> None:
    model, tokenizer = checkpoint.load(FOLDER), Tokenizer.load(FOLDER)
    question = world.Question("talk", "en", ({"role": "user", "content": asked},), wanted, frozenset())
    (reply,) = decoder.ask(model, tokenizer, [question])
    assert world.is_right(question, reply.text), reply.text


async def test_evaluation_asks_greedily_and_reads_the_finish_reason() -> None:
    question = world.held_out_questions()[0]

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        assert body["messages"] == list(question.messages)
        assert body["temperature"] == 0
        choice = {"index": 0, "message": {"role": "assistant", "content": question.key}, "finish_reason": "length"}
        return httpx.Response(200, json={"choices": [choice]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://demo") as client:
        reply = await evaluate.ask(client, "demo", question)
    assert reply == Reply(question, question.key, has_stopped=False)


def test_tally_counts_by_kind_and_language() -> None:
    first, second = world.held_out_questions()[:2]
    tally = Tally([Reply(first, first.key, has_stopped=True), Reply(second, "no idea", has_stopped=False)])
    assert tally.accuracy == 0.5
    assert tally.stopped == 1
    assert "right: 1 of 2 (50.0%); stopped by itself: 1 of 2" in tally.table()
