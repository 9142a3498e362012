"""Answers of a model in training, by the engine's own generator over its weights as they are now.

The single file of training that may import the engine. Each rollout has its own pages, given back before anything is
learned from it; how many depends on what is asked and nothing else, so the same weights and seed answer the same, bit
for bit, in whatever process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from trefoil import wire
from trefoil.engine.generator import Generator
from trefoil.engine.memory import MemoryPlan, bytes_of_page
from trefoil.engine.startup import build_generator, never_chosen
from trefoil_models.checkpoint import Model
from trefoil_models.tokenizer import Tokenizer

PAGE_SIZE = 16
MOST_AT_ONCE = 64
ROWS_PER_STEP = 2048
KV_BYTES = 1 << 30
"""Pages take no more, unless a single sequence needs it."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a model's answers are drawn."""

    model: Model
    tokenizer: Tokenizer
    params: wire.SamplingParams

    def answers(self, prompts: Sequence[Sequence[int]], *, each: int, seed: str) -> list[list[tuple[int, ...]]]:
        """`each` answers to every prompt, with the token that ends them where they came to it."""
        generator = self._generator(max(map(len, prompts)), len(prompts) * each)
        rng = Random(seed)
        for number, ids in enumerate(prompts):
            params = msgspec.structs.replace(self.params, n=each, seed=rng.getrandbits(64))
            refused = generator.submit(wire.Generate(str(number), list(ids), params))
            assert not refused, refused
        drawn: list[list[list[int]]] = [[[] for _ in range(each)] for _ in prompts]
        while generator.has_work:
            for event in generator.step():
                if isinstance(event, wire.Tokens):
                    drawn[int(event.id)][event.index] += event.ids
        generator.check_books()
        return [[tuple(ids) for ids in answers] for answers in drawn]

    def _generator(self, longest_prompt: int, num_answers: int) -> Generator:
        weight, vocab_size = self.model.lm_head.weight, self.model.config.vocab_size
        longest = longest_prompt + self.params.max_tokens
        num_seqs, pages_each = min(num_answers, MOST_AT_ONCE), -(-longest // PAGE_SIZE)
        page_bytes = bytes_of_page(self.model.sites, page_size=PAGE_SIZE, dtype=weight.dtype)
        num_pages = max(pages_each, min(pages_each * num_seqs, KV_BYTES // page_bytes))
        return build_generator(
            self.model,
            MemoryPlan(num_pages, PAGE_SIZE, page_bytes, weight.dtype, longest),
            max_num_seqs=num_seqs,
            max_num_batched_tokens=ROWS_PER_STEP,
            prefix_caching=False,  # the weights change
            never=never_chosen(vocab_size, self.tokenizer),
        )
