"""One answer in the making: its ids, its pages, how far the model has come."""

from dataclasses import dataclass, field

import numpy as np

from trefoil.engine.grammar import Guide
from trefoil.engine.search import Beams
from trefoil.wire import SamplingParams
from trefoil_models.attend import Span


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's prompt and one of its `n` answers.

    `computed` counts the leading ids whose keys and values lie in `pages`. `siblings` wait for this sequence's prompt,
    which they will share. What an encoder made of `source` lies in `source_pages`. The `beams` of a search choose their
    tokens together; `copied` is a page (source, target) that the next step must copy before it writes. `slot` is its
    adapter's, `guide` where it stands in its grammar. `span` is that of a prompt whose context is read both ways: its
    rows are computed in one step, and its pages are nobody else's.
    """

    request_id: str
    index: int
    ids: list[int]
    prompt_len: int
    params: SamplingParams
    priority: int
    arrival: int
    random: np.random.Generator
    salt: bytes = b""
    slot: int = -1
    span: Span | None = None
    guide: Guide | None = None
    computed: int = 0
    cached_len: int = 0
    admitted_at: float = 0.0
    num_scored: int = 1
    pages: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    siblings: list["Sequence"] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    source_pages: list[int] = field(default_factory=list)
    source_names: list[bytes] = field(default_factory=list)
    is_encoded: bool = False
    beams: "Beams[Sequence] | None" = None
    copied: tuple[int, int] | None = None

    @property
    def order(self) -> tuple[int, int, int]:
        """Earlier is served first and pre-empted last."""
        return self.priority, self.arrival, self.index

    @property
    def num_outputs(self) -> int:
        return len(self.ids) - self.prompt_len

    @property
    def has_forced_first_only(self) -> bool:
        """Is the one token so far what the request wants at the beginning, whatever the answer is to be?"""
        return self.num_outputs == 1 and self.params.forced_first_id is not None

    @property
    def num_left(self) -> int:
        """Rows still to be computed before the next token can be chosen."""
        return len(self.ids) - self.computed

    @property
    def wants_tokens(self) -> bool:
        return self.params.max_tokens > 0

    @property
    def wants_prompt_scores(self) -> bool:
        """Are there prompt tokens whose scores were asked for and not yet given?"""
        return self.params.prompt_logprobs is not None and self.index == 0 and self.num_scored < self.prompt_len
