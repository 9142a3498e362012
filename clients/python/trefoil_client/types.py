"""What the server answers, and what a request may say. Fields that a newer server adds are kept, not refused."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`"""
JobStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED: frozenset[JobStatus] = frozenset({"succeeded", "failed", "cancelled"})


class Sampling(TypedDict, total=False):
    """How an answer is chosen; what is left out, the model and the server decide."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    typical_p: float
    n: int
    stop: str | list[str]
    stop_token_ids: list[int]
    seed: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    logit_bias: dict[str, float]
    min_tokens: int
    ignore_eos: bool
    skip_special_tokens: bool
    prompt_logprobs: int
    priority: int
    user: str
    metadata: dict[str, Any]
    response_format: dict[str, Any]
    structured_outputs: dict[str, Any]
    regex: str
    grammar: str
    choice: list[str]
    use_beam_search: bool
    beam_width: int
    length_penalty: float


class ChatOptions(Sampling, total=False):
    """What only chat has."""

    logprobs: bool
    top_logprobs: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    add_generation_prompt: bool
    chat_template_kwargs: dict[str, Any]


class CompletionOptions(Sampling, total=False):
    """What only completions have."""

    logprobs: int
    echo: bool
    best_of: int


class Generation(TypedDict, total=False):
    """Parameters of text-generation and its kin, in Hugging Face's words."""

    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    seed: int
    stop: list[str]
    truncate: int


class Answer(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Usage(Answer):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class TokenLogprob(Answer):
    token: str
    logprob: float
    top_logprobs: list["TokenLogprob"] = []


class ChatLogprobs(Answer):
    content: list[TokenLogprob] | None = None


class ChatMessage(Answer):
    role: str = "assistant"
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class Chat(Answer):
    """A whole answer of the assistant."""

    id: str
    model: str
    choices: list[ChatChoice]
    usage: Usage

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].message.content or ""


class ChatDelta(Answer):
    role: str | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChunkChoice(Answer):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(Answer):
    """What is new of a streamed answer; the last one may bring the usage and no choice."""

    id: str
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The first choice's new text."""
        return (self.choices[0].delta.content or "") if self.choices else ""


class CompletionLogprobs(Answer):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(Answer):
    """Continuations of prompts; when streamed, what is new of them."""

    id: str
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text if self.choices else ""


class Embedding(Answer):
    index: int
    embedding: list[float]


class Embeddings(Answer):
    model: str
    data: list[Embedding]
    usage: Usage

    @property
    def vectors(self) -> list[list[float]]:
        """One vector an input, in order."""
        return [item.embedding for item in sorted(self.data, key=lambda item: item.index)]


class Ranked(Answer):
    index: int
    relevance_score: float
    document: Any = None


class Ranking(Answer):
    results: list[Ranked]


class Model(Answer):
    id: str
    created: int
    family: str | None = None
    architecture: str | None = None
    tasks: list[str] = []
    max_model_len: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    parent: str | None = None


class Label(Answer):
    label: str
    score: float


class Entity(Answer):
    """A named span; `entity_group` where tokens were joined, `entity` where not."""

    word: str
    score: float
    start: int | None
    end: int | None
    entity_group: str | None = None
    entity: str | None = None

    @property
    def name(self) -> str:
        return self.entity_group or self.entity or ""


class Span(Answer):
    """An answer found in a context."""

    answer: str
    score: float
    start: int
    end: int


class Fill(Answer):
    score: float
    token: int
    token_str: str
    sequence: str


class FilledSpan(Answer):
    index: int
    text: str
    score: float


class FilledText(Answer):
    text: str
    score: float
    spans: list[FilledSpan]


class FilledSpans(FilledText):
    """The best way to fill the gaps, and all that were asked for."""

    candidates: list[FilledText]


class Perplexity(Answer):
    perplexity: float
    nll: float
    tokens: list[str]
    token_logprobs: list[float | None]


class Reward(Answer):
    score: float


class GeneratedToken(Answer):
    id: int
    text: str
    logprob: float
    special: bool = False


class GeneratedPiece(Answer):
    """One token of a streamed text-generation; the last one brings the whole text."""

    index: int
    token: GeneratedToken
    generated_text: str | None = None
    details: dict[str, Any] | None = None


class Tokens(Answer):
    tokens: list[str]
    ids: list[int]
    offsets: list[tuple[int, int]]
    type_ids: list[int]
    count: int


class CachePlan(Answer):
    """What a KV cache takes."""

    bytes: int
    bytes_per_token: int
    formula: str


class ScalingPlan(Answer):
    """How parameters, tokens and arithmetic go together."""

    parameters: float
    tokens: float
    compute_flops: float
    formula: str


class File(Answer):
    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str | None = None


class Deleted(Answer):
    id: str
    deleted: bool


class JobError(Answer):
    message: str | None = None
    code: str | None = None
    param: str | None = None


class Job(Answer):
    id: str
    model: str
    status: JobStatus
    created_at: int
    training_file: str
    validation_file: str | None = None
    finished_at: int | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    error: JobError | None = None

    @property
    def is_ended(self) -> bool:
        return self.status in ENDED


class JobEvent(Answer):
    """Something that happened to a job; `data` has the numbers of a `metrics` event."""

    id: str
    created_at: int
    level: str
    message: str
    type: str | None = None
    data: dict[str, Any] | None = None


class Checkpoint(Answer):
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, Any] = Field(default_factory=dict)


class Readiness(Answer):
    status: Literal["ready", "loading"]
    loading: list[str] = []


class Version(Answer):
    version: str
