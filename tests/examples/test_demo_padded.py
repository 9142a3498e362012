"""Padded batches give what packed ones give, and a few examples can be learned by heart and said."""

from random import Random

import torch

from trefoil.training.examples import Example
from trefoil.training.objectives.causal_lm import causal_lm
from trefoil_demo import encoder_decoder, padded
from trefoil_models import checkpoint

SHAPE = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2}
VOCAB = 40


def _model(seed: int) -> checkpoint.EncoderDecoder:
    config = {**encoder_decoder.CONFIG, **SHAPE, "vocab_size": VOCAB}
    return checkpoint.build(config, seed=seed, std_of=encoder_decoder.std_of)  # type: ignore[return-value]


def _examples(count: int) -> list[Example]:
    rng = Random(3)
    drawn = []
    for _ in range(count):
        read = [rng.randrange(3, VOCAB) for _ in range(rng.randint(2, 9))]
        said = (0, *read[: rng.randint(1, 4)], 1)
        drawn.append(Example(said, (False, *[True] * (len(said) - 1)), (*read, 1)))
    return drawn


def test_padding_changes_neither_loss_nor_gradient() -> None:
    examples = _examples(7)
    table = padded.tabulate(examples, pad_id=0, longest=(12, 8))
    model, twin = _model(5), _model(5)
    loss = causal_lm(model, examples)
    (loss.total / loss.weight).backward()
    own = padded.pair_loss(twin, table, pad_id=0)
    own.backward()
    torch.testing.assert_close(own, loss.total / loss.weight, rtol=1e-5, atol=1e-5)
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert other.grad is not None, name
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_what_was_learned_by_heart_is_said() -> None:
    torch.manual_seed(0)
    examples = _examples(8)
    model, table = _model(5), padded.tabulate(examples, pad_id=0, longest=(12, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        padded.pair_loss(model, table, pad_id=0).backward()
        optimizer.step()
    said = padded.greedy(model, table.read_ES.long(), start_id=0, eos_id=1, pad_id=0, most=8)
    assert said == [list(example.ids[1:-1]) for example in examples]
