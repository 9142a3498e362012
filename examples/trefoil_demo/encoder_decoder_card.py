"""The demo encoder-decoder's model card: what it is, how it was made, how well it does, what it cannot do."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date

from trefoil_demo import understanding
from trefoil_demo.understanding import Verdict

CARD = """\
---
license: apache-2.0
language: [en, zh]
pipeline_tag: text2text-generation
tags: [demo]
---

# trefoil demo encoder-decoder

A toy: an encoder-decoder of {parameters:.1f} million parameters that translates sentences about a small made-up world
between English and Chinese, sums up its stories, tells praise from complaint, answers questions on a text and fills
gaps. It exists so that a fresh checkout has something to serve, and as an example of trefoil's training. It is **not**
a general model: outside of its few hundred words it guesses.

## How to ask

| task | text |
|---|---|
| translation | `translate English to Chinese: ...`, `translate Chinese to English: ...` |
| summary | `summarize: ...` |
| sentiment | `sentiment: ...` |
| question | `question: ... context: ...` |
| gap | `The capital of France is <extra_id_0>.` |

## How it was made

`python -m trefoil_demo.encoder_decoder --out DIR --device cuda --minutes {minutes:g}` (in `examples/`) makes this
folder from nothing: a SentencePiece tokenizer, for a fifth of the time span-corruption pre-training on generated text,
then the tasks above in one mixture with such text. This one took {num_steps:,} steps of {batch_size} examples,
{minutes:g} minutes on {device}, {day}; two CPU cores would take twelve hours. No outside text, no other model. The
architecture is that of T5 v1.1 with a tied head; weights are stored in bfloat16.

## How well it does

What it was never shown, greedy answers, asked at the end of the run; only the very text counts, capitals aside:

```
{table}
{total}
```

Held out are combinations: every word and every form of sentence occurs in training, but these sentences never with
their translation, these people (name, city, pet) in no story, these opinions and these questions not at all, these
statements not in these words. `python -m trefoil_demo.evaluate --url URL` asks the same of a running server.
"""


@dataclass(frozen=True, slots=True)
class Training:
    """How long, and where."""

    day: date
    device: str
    minutes: float
    num_steps: int
    batch_size: int


def encoder_decoder_card(num_parameters: int, training: Training, verdicts: Sequence[Verdict]) -> str:
    """README.md of the folder."""
    return CARD.format(
        parameters=num_parameters / 1e6,
        **asdict(training),
        table=understanding.table(verdicts),
        total=understanding.total(verdicts),
    )
