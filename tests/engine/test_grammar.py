"""Answers that follow a grammar, in an engine without a process."""

import re
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher

import tiny
import trefoil_models
from engine_world import answers, finish, generator, request, run
from trefoil import wire
from trefoil.api.grammar import of_choice, of_regex, of_rules
from trefoil.engine.grammar import Grammars
from trefoil_models.tokenizer import Tokenizer

WORDS = of_regex("[a-z]{5,9}( [a-z]{1,9}){2}!", "").grammar()
EOS_ID = 2
REWRITER = Path(trefoil_models.__file__).parent / "demo" / "encoder-decoder"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize("eos_ids", [[EOS_ID], []], ids=["an end token", "none"])
def test_an_answer_ends_where_its_grammar_does(llama: Path, eos_ids: list[int]) -> None:
    engine = generator(llama, eos_ids=eos_ids)
    engine.submit(request("a", [5, 6, 7], 60, grammar=WORDS, temperature=1.0, seed=1, n=3, stop_ids=tuple(eos_ids)))
    events = finish(engine)
    ends = [event for event in events if isinstance(event, wire.Done)]
    assert [end.reason for end in ends] == ["stop"] * 3
    texts = {Tokenizer.load(llama).decode(ids) for ids in answers(events).values()}
    assert all(re.fullmatch("[a-z]{5,9}( [a-z]{1,9}){2}!", text) for text in texts)
    assert len(texts) == 3


def test_pre_empted_it_goes_on_where_it_stood(llama: Path) -> None:
    prompts = tiny.draw_ids(*[9] * 6)
    requests = [request(str(n), ids, 40, grammar=WORDS, seed=n, temperature=1.0) for n, ids in enumerate(prompts)]
    roomy, tight = generator(llama, eos_ids=[EOS_ID]), generator(llama, eos_ids=[EOS_ID], pages=24)
    assert run(tight, requests) == run(roomy, requests)
    assert tight.stats().preemptions > 0


def test_one_that_leads_nowhere_fails_alone(llama: Path) -> None:
    engine = generator(llama, eos_ids=[EOS_ID])
    lost = request("lost", [5, 6], 9, grammar=of_rules("start: start", "").grammar(), n=3)
    wrong = request("wrong", [5, 6], 9, grammar=LLMatcher.grammar_from_regex("(a"))
    assert [type(event) for event in engine.submit(wrong)] == [wire.Failed]
    assert engine.submit(lost) == engine.submit(request("free", [5, 6, 7], 9)) == []
    events = finish(engine)
    assert [event.id for event in events if isinstance(event, wire.Failed)] == ["lost"]
    assert answers(events)["free", 0] == run(generator(llama), [request("free", [5, 6, 7], 9)])["free", 0]


def test_a_choice_that_begins_another_may_end_or_go_on(llama: Path) -> None:
    tokenizer = Tokenizer.load(llama)
    guide = Grammars(tokenizer, vocab_size=300, eos_ids=[EOS_ID]).guide(of_choice(["no", "now"], "").grammar())
    for letter in "no":
        guide.take(tokenizer.encode_ids(letter)[0])
    allowed = (~guide.forbidden(torch.device("cpu"))).nonzero().flatten().tolist()
    assert allowed == sorted([EOS_ID, *tokenizer.encode_ids("w")])


def test_an_encoder_decoder_begins_with_a_whole_word() -> None:
    """SentencePiece's first token has a space that is not in the text: it must not be in the grammar's way either."""
    tokenizer, engine = Tokenizer.load(REWRITER), generator(REWRITER, eos_ids=[1])
    word = of_choice(["positive", "negative"], "").grammar()
    source = tokenizer.encode_ids("sentiment: I love this city.")
    (ids,) = run(engine, [request("a", [0], 20, source=source, grammar=word)]).values()
    assert ids == tokenizer.encode_ids("positive", add_special_tokens=False)
