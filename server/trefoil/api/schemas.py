"""Shapes that several routes use: the generation parameters, checked by field, and how they become SamplingParams."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from trefoil import wire
from trefoil.api.fleet import ServedModel
from trefoil.api.grammar import (
    Choices,
    ResponseFormat,
    StructuredOutputs,
    Wanted,
    of_choice,
    of_format,
    of_outputs,
    of_regex,
    of_rules,
)
from trefoil.api.reference import Answer
from trefoil.api.text import StopText, Text
from trefoil.api.text_stream import Usage
from trefoil.errors import InvalidRequest, NotImplementedHere, RequestTooLong

MAX_TOP = 20
MAX_BEAMS = 64
DEFAULT_BEAMS = 4
INT64 = 2**63


TokenId = Annotated[int, Field(ge=0)]
Rows = Annotated[list[TokenId], Field(min_length=1)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationParams(BaseModel):
    """What chat and completions have in common. Unknown fields are ignored, as OpenAI-compatible servers do."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=INT64)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stop_token_ids: list[TokenId] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP)] | None = None
    priority: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    use_beam_search: bool | None = None
    beam_width: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    regex: Text | None = None
    grammar: Text | None = None
    choice: Choices | None = None

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields that are known and refused by name, but for these values, which ask for nothing."""

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def has_usage_chunk(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wanted(self) -> Wanted | None:
        """What the answer's text must look like. Raises InvalidRequest for two demands, or one that others undo."""
        found = [*of_format(self.response_format), *of_outputs(self.structured_outputs)]
        found += [] if self.regex is None else [of_regex(self.regex, "regex")]
        found += [] if self.choice is None else [of_choice(self.choice, "choice")]
        found += [] if self.grammar is None else [of_rules(self.grammar, "grammar")]
        if not found:
            return None
        if len(found) > 1:
            raise InvalidRequest(f"{found[0].param} already says what the answer must look like", param=found[1].param)
        self.check_beside(found[0].param)
        return found[0]

    def check_beside(self, form: str) -> None:
        """Raise InvalidRequest for what could undo the form that the field `form` gives the answer."""
        for name in ("use_beam_search", "min_tokens", "ignore_eos", "no_repeat_ngram_size"):
            if getattr(self, name):
                raise InvalidRequest(f"{name} cannot be kept beside {form}: leave one out", param=name)

    def refuse_unsupported(self) -> None:
        """Raise for a field that is not there yet, unless it asks for nothing, or that has nothing to act on."""
        for name, neutral in self.NEUTRAL.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise NotImplementedHere(name)
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", param="stream_options")
        self._check_search()

    @property
    def num_beams(self) -> int:
        """A search of no stated width has as many beams as answers, and at least DEFAULT_BEAMS."""
        return (self.beam_width or max(self.n or 1, DEFAULT_BEAMS)) if self.use_beam_search else 1

    def _check_search(self) -> None:
        """Raise for what has no meaning with beam search, or none without."""
        if not self.use_beam_search:
            for name, neutral in (("beam_width", 1), ("length_penalty", 1.0), ("early_stopping", False)):
                if getattr(self, name) not in (None, neutral):
                    raise InvalidRequest(f"{name} needs use_beam_search: true", param=name)
            return
        for name, neutral in (("temperature", 0.0), ("top_p", 1.0), ("min_p", 0.0), ("typical_p", 1.0)):
            if getattr(self, name) not in (None, neutral):
                raise InvalidRequest(f"beam search does not sample: leave {name} out", param=name)
        if (self.n or 1) > self.num_beams:
            raise InvalidRequest(f"n {self.n} is more than beam_width {self.beam_width}", param="n")

    def sampling(
        self,
        model: ServedModel,
        prompt_len: int,
        *,
        param: str,
        default_tokens: int | None,
        logprobs: int | None,
        length_param: str = "max_tokens",
        grammar: str | None = None,
    ) -> wire.SamplingParams:
        """These parameters for a prompt of `prompt_len` tokens that came in the field `param`.

        What the request leaves open, the model's generation_config.json decides, then OpenAI's defaults.
        Raises RequestTooLong, or InvalidRequest for values that only this model forbids.
        """
        defaults = model.defaults
        return wire.SamplingParams(
            max_tokens=self._max_tokens(model, prompt_len, (param, length_param), default_tokens),
            temperature=0.0 if self.use_beam_search else _first(self.temperature, defaults.temperature, 1.0),
            top_p=_first(self.top_p, defaults.top_p, 1.0),
            top_k=max(_first(self.top_k, defaults.top_k, 0), 0),
            min_p=_first(self.min_p, defaults.min_p, 0.0),
            typical_p=_first(self.typical_p, defaults.typical_p, 1.0),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=_first(self.repetition_penalty, defaults.repetition_penalty, 1.0),
            no_repeat_ngram_size=self.no_repeat_ngram_size or 0,
            logit_bias=self._bias(model.ready.vocab_size),
            min_tokens=self.min_tokens or 0,
            stop_ids=self._stop_ids(model),
            seed=self.seed,
            n=self.n or 1,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            beams=self.num_beams,
            length_penalty=1.0 if self.length_penalty is None else self.length_penalty,
            early_stopping=None if self.early_stopping == "never" else bool(self.early_stopping),
            forced_first_id=model.start.forced_first_id if model.start else None,
            forced_last_id=model.start.forced_last_id if model.start else None,
            grammar=grammar,
        )

    def _max_tokens(self, model: ServedModel, prompt_len: int, params: tuple[str, str], default: int | None) -> int:
        prompt_param, length_param = params
        limit, room = model.ready.max_model_len, model.room(prompt_len)
        asked = self.max_tokens
        if asked is None:
            asked = min(_first(model.defaults.max_new_tokens, default, room), room)
            if room < 1:
                raise RequestTooLong(prompt_len, 0, limit, param=prompt_param)
        if asked > room:
            raise RequestTooLong(prompt_len, asked, limit, param=prompt_param if room < 1 else length_param)
        if (self.min_tokens or 0) > asked:
            raise InvalidRequest(
                f"min_tokens {self.min_tokens} is more than {length_param} {asked}", param="min_tokens"
            )
        return asked

    def _bias(self, vocab_size: int) -> dict[int, float]:
        bias = {}
        for name, value in (self.logit_bias or {}).items():
            is_number = name.isascii() and name.isdigit() and len(name) <= len(str(vocab_size))
            if not is_number or int(name) >= vocab_size:
                raise InvalidRequest(f"logit_bias: {name[:20]!r} is no token id below {vocab_size}", param="logit_bias")
            bias[int(name)] = value
        return bias

    def _stop_ids(self, model: ServedModel) -> tuple[int, ...]:
        check_ids(self.stop_token_ids or [], model, param="stop_token_ids")
        eos_ids = () if self.ignore_eos else model.eos_ids
        return tuple(dict.fromkeys((*eos_ids, *(self.stop_token_ids or []))))


def check_ids(ids: Iterable[int], model: ServedModel, *, param: str) -> None:
    """Raise InvalidRequest unless every id is in the model's vocabulary."""
    vocab_size = model.ready.vocab_size
    for token_id in ids:
        if token_id >= vocab_size:
            raise InvalidRequest(f"token id {token_id} is not below the vocabulary's {vocab_size}", param=param)


class CachedTokens(Answer):
    cached_tokens: int


class UsageAnswer(Answer):
    """How many tokens were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class ReadTokens(Answer):
    """How many tokens were read, where none are written."""

    prompt_tokens: int
    total_tokens: int


class PromptScore(Answer):
    logprob: float
    rank: int
    decoded_token: str


PromptScores = list[dict[str, PromptScore] | None]
"""By token id, for each token of the prompt; null for the first."""


def usage_body(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


def _first(*values: Any) -> Any:
    """The first value that was given; the last is the default."""
    return next((value for value in values if value is not None), None)
