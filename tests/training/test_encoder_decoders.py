"""Encoder-decoders learn what the decoder says, given what the encoder reads; packed as in transformers one by one."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

import tiny
import tiny_pairs
from training.conftest import trainable
from trefoil.rows import Chat, Continuation, RowError
from trefoil.training.data import Reader, answer_example
from trefoil.training.examples import Example
from trefoil.training.loop import Recipe, Watch, train
from trefoil.training.objectives.sft import Sft
from trefoil_models import checkpoint
from trefoil_models.adapter_files import save_adapter
from trefoil_models.lora import LoraShape, attach
from trefoil_models.tokenizer import Tokenizer

CHAT = Chat(({"role": "user", "content": "one"}, {"role": "assistant", "content": "two 二"}))


def draw(*lens: tuple[int, int]) -> list[Example]:
    drawn = tiny.draw_ids(*(n for pair in lens for n in pair), vocab=300)
    ids = iter([[max(i, 3) for i in one] for one in drawn])  # transformers learns nothing of a padding id
    pairs = [(next(ids), [tiny_pairs.START, *next(ids)]) for _ in lens]
    return [Example(tuple(said), (False, *[True] * (len(said) - 1)), tuple(source)) for source, said in pairs]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_packed_loss_and_gradient_norm_equal_transformers(tmp_path: Path, family: str) -> None:
    folder = tiny_pairs.checkpoint(tmp_path / family, family, pad_token_id=2)
    ours, theirs = trainable(folder), tiny_pairs.oracle(folder)
    examples = draw((9, 4), (1, 7), (14, 2))
    loss = Sft()(ours, examples)
    total = torch.zeros(())
    for example in examples:
        told = theirs(input_ids=torch.tensor([example.source]), decoder_input_ids=torch.tensor([example.ids[:-1]]))
        total = total + torch.nn.functional.cross_entropy(
            told.logits[0], torch.tensor(example.ids[1:]), reduction="sum"
        )
    torch.testing.assert_close(loss.total, total, atol=1e-3, rtol=1e-5)
    loss.total.backward()
    total.backward()
    norms = [
        float(
            torch.nn.utils.get_total_norm(
                [p.grad for name, p in model.named_parameters() if name not in ("lm_head.bias", "final_logits_bias")]
            )
        )
        for model in (ours, theirs)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_a_row_becomes_a_source_and_what_is_said_to_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_pairs.checkpoint(tmp_path / "t5", "t5"))
    reading = Reader(tokenizer, (tiny.EOS,), 40, start_id=tiny_pairs.START)
    for row in (CHAT, Continuation("one", "two 二")):
        example = answer_example(row, reading)
        assert example.ids[0] == tiny_pairs.START
        assert tokenizer.decode(example.source) == "one"
        assert tokenizer.decode(example.ids[1:], skip_special_tokens=False) == "two 二<|end|>"
        assert all(example.is_label[1:])
    with pytest.raises(RowError, match="must end with the assistant"):
        answer_example(Chat(CHAT.messages[:1]), reading)
    with pytest.raises(RowError, match="a source of"):
        answer_example(Continuation("one " * 90, "two"), reading)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's, of transformers
def test_adapter_learns_and_answers_the_same_in_peft(tmp_path: Path) -> None:
    folder = tiny_pairs.checkpoint(tmp_path / "t5", "t5", std=0.1)
    model, shape, examples = checkpoint.load(folder), LoraShape(r=4), draw((5, 4), (3, 6))
    attach(model, shape, seed=0)
    losses: list[float] = []
    watch = Watch(report=lambda progress: losses.append(progress.loss))
    train(model, Sft(), examples, Recipe(learning_rate=2e-2, epochs=60, report_every=1), watch=watch)
    assert losses[-1] < losses[0] - 0.3  # the frozen head of random numbers allows no more
    save_adapter(model, tmp_path / "adapter", shape, base="t5")
    theirs = PeftModel.from_pretrained(tiny_pairs.oracle(folder), tmp_path / "adapter")
    total = 0.0
    for example in examples:
        told = theirs(input_ids=torch.tensor([example.source]), decoder_input_ids=torch.tensor([example.ids[:-1]]))
        total += float(
            torch.nn.functional.cross_entropy(told.logits[0], torch.tensor(example.ids[1:]), reduction="sum")
        )
    with torch.no_grad():
        assert float(Sft()(model, examples).total) == pytest.approx(total, rel=1e-4)
