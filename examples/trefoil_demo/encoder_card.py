"""The demo encoders' model cards: what each is, how it was made, how well it does, what it cannot do."""

from trefoil_demo import understanding
from trefoil_demo.understanding import Verdict

CARD = """\
---
license: apache-2.0
language: [en, zh]
pipeline_tag: {pipeline}
tags: [demo]
---

# trefoil demo encoder: {name}

A toy: an encoder of {parameters:.2f} million parameters that {does}, in English and Chinese, about a small
made-up world. It exists so that a fresh checkout has something to serve, and as an example of trefoil's training. It
is **not** a general model: outside of its few hundred words it guesses.

## How it was made

`python -m trefoil_demo.encoder --out DIR` (in `examples/`) makes this folder and its three sisters from nothing on one
CPU core: a WordPiece tokenizer, masked-LM pre-training (80/10/10, drawn anew at every use) on generated text, then
{then}. No outside text, no other model. The architecture is that of BERT; weights are stored in bfloat16.

## How well it does

What it was never shown, asked at the end of the run:

```
{table}
```

{held_out} `python -m trefoil_demo.evaluate --url URL` asks the same of a running server.
"""

ABOUT = {
    "encoder": (
        "fill-mask",
        "says which word is hidden",
        "a second sitting with whole names hidden (ERNIE's way)",
        "Held out are statements: each fact is in the training text, but not in these words.",
        "fill-mask",
    ),
    "encoder-sentiment": (
        "text-classification",
        "tells praise from complaint",
        "a head on labelled opinions",
        "Held out are sentences: each word and each form of them occurs in training, but not together.",
        "sentiment",
    ),
    "encoder-entities": (
        "token-classification",
        "finds the names of people and places",
        "a head on tagged sentences",
        "Held out are invented names and the stories of some people; a text counts where exactly its names are found.",
        "entities",
    ),
    "encoder-answers": (
        "question-answering",
        "finds the words of a text that answer a question",
        "a head on questions with their texts, in two sittings",
        "Held out are phrasings of questions on facts, and the stories of some people; only the exact words count.",
        "answers",
    ),
}
"""For each folder: its task, what it does, how it was tuned, what was held out, and its line of the table."""


def encoder_card(folder: str, num_parameters: int, verdicts: list[Verdict]) -> str:
    """README.md for one folder."""
    pipeline, does, then, held_out, task = ABOUT[folder]
    return CARD.format(
        name=folder.removeprefix("encoder-").replace("encoder", "hidden words"),
        pipeline=pipeline,
        parameters=num_parameters / 1e6,
        does=does,
        then=then,
        held_out=held_out,
        table=understanding.table([verdict for verdict in verdicts if verdict.task == task]),
    )
