"""Messages between the API and an engine process: ids go down, ids come up; text exists only in the API.

The API sends one Command a message; the engine answers with one Batch a step. Every Generate gets, for each of its
`n` answers, any number of Tokens and then exactly one Done, or one Failed for the whole request. Every Once gets one
Scores or one Failed.
"""

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. `top_k` 0 and `top_p`, `typical_p` 1 mean all; `logprobs` counts alternatives wanted.

    With several `beams` the `n` best answers of a beam search come whole at its end. `early_stopping`: true as soon as
    there are as many answers as beams, null never before none can be better, false by transformers' rule of thumb.
    `forced_first_id` and `forced_last_id` (at `max_tokens`) are chosen whatever the model says. `grammar`, in
    llguidance's text, is what an answer must follow; it ends where that does.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | None = False
    forced_first_id: int | None = None
    forced_last_id: int | None = None
    grammar: str | None = None


class Generate(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Continue `ids`; a lower `priority` goes first. `adapter`: a loaded one's name; None is the base model.

    `source` is what an encoder-decoder's encoder reads.
    """

    id: str
    ids: list[int]
    params: SamplingParams
    priority: int = 0
    adapter: str | None = None
    source: list[int] = []


def prompt_len(request: Generate) -> int:
    """How many tokens of the user's the request has: the encoder's where there is one."""
    return len(request.source or request.ids)


class Once(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Ask a head about `ids` in one pass; besides the model's heads "hidden" gives its rows and "embed" one vector.

    `type_ids` tell the two texts of a pair apart; empty: one text. The head "mask" gives log-probabilities at `rows`:
    of the `targets`, or where there are none of the `top_k` likeliest tokens.
    """

    id: str
    ids: list[int]
    head: str
    type_ids: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    top_k: int = 0


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a request, or one of its answers; what is unknown or done already is no error."""

    id: str
    index: int | None = None


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Let requests name this adapter from now on; one of the same name gives way."""

    name: str
    folder: str


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Forget an adapter; what runs with it ends in order."""

    name: str


Request = Generate | Once
Command = Request | Abort | LoadAdapter | UnloadAdapter


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of a token under the model's own distribution, its rank from 1, and the likeliest others."""

    logprob: float
    rank: int
    top: list[tuple[int, float]]


class Tokens(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """New ids of one answer, with a score each where they were asked for."""

    id: str
    index: int
    ids: list[int]
    scores: list[TokenScore] = []


class PromptScores(msgspec.Struct, frozen=True, tag=True):
    """Scores of the next prompt tokens in order, the first token having none."""

    id: str
    scores: list[TokenScore]


class Done(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The end of one answer. `stop_id`: the token that ended it, already sent in Tokens. `score`: of a beam search.

    `admitted_at`: when its sequence left the queue, by the clock that all processes of a machine share (monotonic).
    """

    id: str
    index: int
    reason: str
    stop_id: int | None = None
    cached_len: int = 0
    admitted_at: float = 0.0
    score: float | None = None


class Scores(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """What a head said: float32 numbers in C order, one row of `shape[-1]` for a text or for each of its tokens.

    `ids`: which tokens a row of numbers is about, where the engine chose them.
    """

    id: str
    shape: tuple[int, ...]
    data: bytes
    ids: list[list[int]] = []


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The end of a request that the engine could not serve."""

    id: str
    message: str


Event = Tokens | PromptScores | Done | Scores | Failed


class Stats(msgspec.Struct, frozen=True, omit_defaults=True):
    """The engine's gauges and running totals after a step."""

    running: int = 0
    waiting: int = 0
    pages_used: int = 0
    pages_total: int = 0
    slots_filled: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Checked(msgspec.Struct, frozen=True, tag=True):
    """The model folder is sound; its weights are being read."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be served; one line says why. The process ends."""

    message: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine can answer; what the API must know of it.

    `tasks` are what the checkpoint was made for; `side_tasks` it can do too, where it is named or nothing else is made
    for them.
    """

    kind: str
    tasks: tuple[str, ...]
    side_tasks: tuple[str, ...]
    architecture: str
    dtype: str
    max_model_len: int
    vocab_size: int
    quantization: str | None = None
    page_size: int = 0
    num_pages: int = 0
    page_dtype: str | None = None


class Batch(msgspec.Struct, frozen=True, tag=True):
    """All that one step brought."""

    events: list[Event]
    stats: Stats


Message = Checked | Refused | Ready | Batch


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to start an engine process."""

    name: str
    folder: str
    inbox: str
    outbox: str
    device: str = "cpu"
    dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    page_size: int = 16
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    memory_share: float = 0.5
    prefix_caching: bool = True
    adapters: dict[str, str] = {}
    threads: int | None = None
    num_ranks: int = 1
    log_json: bool = False


LONGEST_FORK = 2**20
"""Bytes of one message to the fork server; a spec has a few hundred, and more for each adapter."""


class Fork(msgspec.Struct, frozen=True):
    """To the fork server: make an engine. `number` is new."""

    number: int
    spec: EngineSpec


class Forked(msgspec.Struct, frozen=True):
    """The answer, from the engine itself."""

    number: int
    pid: int


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to start a training worker. A job's state is saved about every `checkpoint_s` seconds.

    An embedded one is a server's child and ends with it.
    """

    database: str
    data_dir: str
    device: str = "cpu"
    is_embedded: bool = False
    lease_s: float = 30.0
    checkpoint_s: float = 10.0
    log_json: bool = False
