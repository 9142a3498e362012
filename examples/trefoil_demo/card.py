"""The demo decoder's model card: what it is, how it was made, how well it does, what it cannot do."""

from trefoil_demo.tally import Tally

CARD = """\
---
license: apache-2.0
language: [en, zh]
pipeline_tag: text-generation
tags: [demo]
---

# trefoil demo decoder

A toy: a decoder of {parameters:.1f} million parameters that answers questions about a small made-up world, in English
and Chinese. It exists so that a fresh checkout has something to serve, and as an example of trefoil's training. It is
**not** a general language model: it knows {countries} capitals, the colours of {things} things, {pairs} pairs of
opposites, sums and differences up to 20, and it answers questions about a short story of the kind it was trained on.
To anything else it should say that it does not know; it may also answer nonsense.

## How it was made

`python -m trefoil_demo.decoder --out DIR` (in `examples/`) makes this folder from nothing in {minutes:.0f} minutes on
2 CPU cores: a byte-level BPE tokenizer, pre-training on {documents:,} generated documents, then instruction tuning on
{chats:,} generated chats with the loss on the answers only. No outside text, no other model. The architecture is that
of Qwen 3 ({model_type}); the weights are random at the start.

## How well it does

Held-out questions, greedy answers, asked at the end of that run:

```
{table}
```

What held out means: every *fact* is in the training text; the *question* (this phrasing of this fact in this
language) is not, in any spelling or punctuation. So `3 + 4 = 7` was stated, and asked in other words. Nothing here
measures facts that the model was never told. Held-out stories are about people (name, city, pet) that no training
story has, in either language. `python -m trefoil_demo.evaluate --url URL` asks the same questions of a running
server.

## Limits

Sums only up to 20. Questions in other words than the generator's, longer stories, or mixed languages fail often. It
repeats no system prompt, follows no instructions, and knows nothing of the real world beyond the facts above.
Context: {context} tokens, trained on at most {window}.
"""


def model_card(
    *, num_parameters: int, tally: Tally, minutes: float, counts: dict[str, int], model_type: str, context: int
) -> str:
    """README.md for the model's folder; `counts` are the world's sizes by the names in CARD."""
    return CARD.format(
        parameters=num_parameters / 1e6,
        table=tally.table(),
        minutes=minutes,
        model_type=model_type,
        context=context,
        **counts,
    )
