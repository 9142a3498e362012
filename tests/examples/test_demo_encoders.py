"""The bundled demo encoders are small, are what their cards say, and their held-out test is held out."""

from pathlib import Path
from random import Random

import pytest

import trefoil_models
from trefoil_demo import encoder, mentions, opinions, passages, understanding

FLOORS = {"fill-mask": 0.9, "sentiment": 0.9, "entities": 0.9, "answers": 0.9}
DEMO = Path(trefoil_models.__file__).parent / "demo"


def test_all_four_folders_together_are_at_most_ten_megabytes() -> None:
    files = [path for name in encoder.FOLDERS for path in (DEMO / name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    for name in encoder.FOLDERS:
        wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
        assert {path.name for path in (DEMO / name).iterdir()} == wanted


def test_every_task_is_as_good_as_the_cards_say() -> None:
    verdicts = encoder.judge(DEMO)
    for task, floor in FLOORS.items():
        own = [one for one in verdicts if one.task == task]
        assert understanding.worst(own) >= floor, understanding.table(own)


def test_held_out_sentences_never_occur_in_training() -> None:
    trained = {one.text.casefold() for one in opinions.training_opinions(Random(1), 30_000)}
    assert not [one for one in opinions.held_out_opinions() if one.text.casefold() in trained]
    documents = "\n".join(passages.documents(Random(2), 20_000))
    assert not [one.text for one in passages.held_out_blanks() if f"\n{one.text}\n" in documents]
    blanks = {one.text for one in passages.training_blanks(Random(3), 20_000)}
    assert not [one.text for one in passages.held_out_blanks() if one.text in blanks]
    seen = {one.text for one in mentions.training_mentions(Random(4), 10_000)}
    assert not [one.text for one in mentions.held_out_mentions() if one.text in seen]


def test_answers_are_words_of_their_context() -> None:
    for passage in [*passages.training_passages(Random(5), 2_000), *passages.held_out_passages()]:
        assert passage.span is None or passage.answer.strip() == passage.answer != ""


def test_mentions_lie_where_the_names_are() -> None:
    for tagged in mentions.training_mentions(Random(6), 1_000):
        assert all(tagged.text[one.start : one.end].strip() for one in tagged.mentions)


@pytest.mark.parametrize("verdicts", [[], [understanding.Verdict("a", "en", True, "", "")]], ids=len)
def test_the_worst_of_nothing_is_no_failure(verdicts: list[understanding.Verdict]) -> None:
    assert understanding.worst(verdicts) == 1.0
