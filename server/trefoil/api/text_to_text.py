"""Generation in transformers' words: what summarization, translation and text2text-generation share.

What a request leaves open the folder decides, for the task or in general, as transformers' pipelines have it.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trefoil import wire
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.generation import begin, encode_prompt
from trefoil.api.schemas import INT64, MAX_BEAMS, GenerationParams
from trefoil.api.text import Text
from trefoil.api.text_stream import TextStream
from trefoil.errors import InvalidRequest

DEFAULT_TOKENS = 256
MAX_TEXTS = 256
SPACED = re.compile(r" ([.?!,])| (n't|'m|'s|'ve|'re)(?!\w)")
Truncation = Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


class Generation(BaseModel):
    """transformers' names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    max_length: Annotated[int, Field(ge=2)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    num_return_sequences: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, lt=INT64)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    seed: Annotated[int, Field(ge=0, lt=INT64)] | None = None

    def over(self, defaults: "Generation") -> "Generation":
        """These where they are given; a length in either way of counting is one answer to one question."""
        given, base = (self.model_dump(exclude_none=True), defaults.model_dump(exclude_none=True))
        for one, other in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if one in given or other in given:
                base.pop(one, None)
                base.pop(other, None)
        return Generation(**{**base, **given})

    @property
    def num_new(self) -> int | None:
        """The most tokens of an answer; `max_length` counts the decoder's first too."""
        return self.max_new_tokens or (self.max_length - 1 if self.max_length else None)

    def params(self) -> GenerationParams:
        """The same in OpenAI's words. Raises InvalidRequest where they contradict each other."""
        beams, count = self.num_beams or 1, self.num_return_sequences or 1
        if count > beams and not self.do_sample:
            raise InvalidRequest(
                f"num_return_sequences {count} is more than num_beams {beams} without do_sample",
                param="parameters.num_return_sequences",
            )
        if beams > 1 and self.do_sample:
            raise InvalidRequest("beam search does not sample: leave one out", param="parameters.do_sample")
        return GenerationParams(
            max_tokens=self.num_new,
            min_tokens=self.min_new_tokens or max((self.min_length or 0) - 1, 0),
            n=count,
            use_beam_search=beams > 1,
            beam_width=beams if beams > 1 else None,
            length_penalty=self.length_penalty if beams > 1 else None,
            early_stopping=self.early_stopping if beams > 1 else None,
            temperature=None if self.do_sample else 0.0,
            top_k=self.top_k if self.do_sample else None,
            top_p=self.top_p if self.do_sample else None,
            min_p=self.min_p if self.do_sample else None,
            typical_p=self.typical_p if self.do_sample else None,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            seed=self.seed,
        )


class TextParameters(Generation):
    """Those of a task, flat or in one of the objects that clients put them in."""

    generate_parameters: Generation | None = None
    generate_kwargs: Generation | None = None
    clean_up_tokenization_spaces: bool | None = None
    truncation: Truncation | None = None

    def generation(self, defaults: Generation) -> Generation:
        """Flat ones before nested ones before the folder's."""
        flat = Generation(**self.model_dump(exclude_none=True, include=set(Generation.model_fields)))
        for nested in (self.generate_parameters, self.generate_kwargs):
            flat = flat.over(nested) if nested else flat
        return flat.over(defaults)


class TranslationParameters(TextParameters):
    src_lang: Text | None = None
    tgt_lang: Text | None = None


class TextRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    parameters: TextParameters = TextParameters()
    model: str | None = None

    @property
    def texts(self) -> list[str]:
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs


class TranslationRequest(TextRequest):
    parameters: TranslationParameters = TranslationParameters()


@dataclass(frozen=True, slots=True)
class Rewriting:
    """How a model rewrites texts for a task: with which prefix, and which first token where it has languages."""

    model: ServedModel
    task: str
    prefix: str
    first_id: int | None = None
    source_language: tuple[int, int] | None = None
    """The language code that the tokenizer puts around texts, and the one to put there."""

    async def ids(self, fleet: Fleet, text: str, truncation: Truncation | None) -> list[int]:
        """What the encoder reads, cut to what it takes where that was asked for."""
        ids = await encode_prompt(fleet, self.model, self.prefix + text, param="inputs")
        if self.source_language:
            default, wanted = self.source_language
            ids = [wanted if token_id == default else token_id for token_id in ids]
        limit = self.model.ready.max_model_len
        if truncation in ("longest_first", "only_first") and len(ids) > limit:
            ids = [*ids[: limit - 1], ids[-1]]
        return ids


def rewriting(model: ServedModel, task: str) -> Rewriting:
    """The task with the prefix that the folder has for it."""
    return Rewriting(model, task, _prefix(model.source.generation_keys(task).values))


def translation(model: ServedModel, source: str | None, target: str | None) -> Rewriting:
    """Between two languages: by T5's prefixes, or by mBART's codes. Raises InvalidRequest where it cannot be known."""
    if model.source.model_type == "mbart":
        return _by_codes(model, source, target)
    pairs = {name for name in model.config.inside("task_specific_params").values if name.startswith("translation_")}
    able = sorted(name for name in pairs if _is_between(name, source, target))
    if len(able) == 1:
        return rewriting(model, able[0])
    if not pairs and source is None and target is None:
        return rewriting(model, "translation")
    is_source_known = source is None or any(_is_between(name, source, None) for name in pairs)
    known = ", ".join(sorted(name.removeprefix("translation_").replace("_to_", " to ") for name in pairs)) or "none"
    raise InvalidRequest(
        f"src_lang and tgt_lang must name one of the model's pairs of languages: {known}",
        param="parameters.tgt_lang" if is_source_known else "parameters.src_lang",
    )


def _is_between(name: str, source: str | None, target: str | None) -> bool:
    has_source, _, has_target = name.removeprefix("translation_").partition("_to_")
    return source in (None, has_source) and target in (None, has_target)


def _by_codes(model: ServedModel, source: str | None, target: str | None) -> Rewriting:
    """mBART: the source's code stands beside the text, the target's is the answer's first token."""
    first_id = _code(model, target, "tgt_lang") if target is not None else None
    if first_id is None and model.source.decoder_start.forced_first_id is None:
        raise InvalidRequest("this model needs tgt_lang", param="parameters.tgt_lang")
    swap = None
    if source is not None:
        frame = [i for i in model.tokenizer.encode_ids("") if i not in (model.tokenizer.eos_id, model.tokenizer.bos_id)]
        wanted = _code(model, source, "src_lang")
        if len(frame) != 1:
            raise InvalidRequest("this model's tokenizer marks no language", param="parameters.src_lang")
        swap = frame[0], wanted
    return Rewriting(model, "translation", "", first_id, swap)


def _code(model: ServedModel, language: str, field: str) -> int:
    token_id = model.tokenizer.token_id(language)
    if token_id is None or token_id not in model.tokenizer.special_ids:
        raise InvalidRequest(f"the model has no language {language[:40]!r}", param=f"parameters.{field}")
    return token_id


def _prefix(values: Mapping[str, Any]) -> str:
    prefix = values.get("prefix")
    return prefix if isinstance(prefix, str) else ""


def folder_wishes(model: ServedModel, task: str) -> Generation:
    """What the folder asks for where the request is silent; a value that no request may have is left out."""
    values = model.source.generation_keys(task).values
    wishes: dict[str, Any] = {}
    for name in Generation.model_fields:
        try:
            wishes.update(Generation(**{name: values.get(name)}).model_dump(exclude_none=True))
        except ValidationError:
            continue
    return Generation(**wishes)


async def start(fleet: Fleet, how: Rewriting, texts: Sequence[str], parameters: TextParameters) -> list[TextStream]:
    """Submit every text, or none where one is refused."""
    generation = parameters.generation(folder_wishes(how.model, how.task))
    asked = generation.params()
    encoded = [await how.ids(fleet, text, parameters.truncation) for text in texts]
    params = [_sampling(how, asked, len(ids), generation) for ids in encoded]
    begun: list[TextStream] = []
    try:
        for ids, own in zip(encoded, params, strict=True):
            begun.append(begin(how.model, ids, own, asked))
    except BaseException:
        for stream in begun:
            stream.close()
        raise
    return begun


def _sampling(how: Rewriting, asked: GenerationParams, prompt_len: int, generation: Generation) -> wire.SamplingParams:
    params = asked.sampling(
        how.model,
        prompt_len,
        param="inputs",
        default_tokens=DEFAULT_TOKENS,
        logprobs=None,
        length_param="parameters.max_new_tokens" if generation.max_new_tokens else "parameters.max_length",
    )
    return params if how.first_id is None else msgspec.structs.replace(params, forced_first_id=how.first_id)


async def texts_of(streams: Sequence[TextStream], count: int, *, cleans_up: bool) -> list[list[str]]:
    """All answers to each text, best first where a search found them."""
    return list(await asyncio.gather(*(_answers(stream, count, cleans_up) for stream in streams)))


async def _answers(stream: TextStream, count: int, cleans_up: bool) -> list[str]:
    answers = [""] * count
    async for piece in stream:
        answers[piece.index] += piece.text
    return [_cleaned(answer) for answer in answers] if cleans_up else answers


def _cleaned(text: str) -> str:
    """Without the spaces that word-wise tokenizers leave before punctuation and English endings."""
    return SPACED.sub(r"\1\2", text.replace(" ' ", "'"))
