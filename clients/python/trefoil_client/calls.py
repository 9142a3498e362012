"""Every route as a pure function: its arguments become a Call, which says what to send and how to read the answer.

`client` sends them, synchronously or not; so can you: `client.send(calls.batch(map(calls.classify, texts)))`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import IO, Any, TypeVar, Unpack
from urllib.parse import quote

from pydantic import TypeAdapter

from trefoil_client import types as t
from trefoil_client.call import (
    Call,
    StreamCall,
    TaskCall,
    event_of,
    given,
    items,
    known,
    listed,
    one,
    parsed,
    path_part,
    plain,
    post_call,
    query_of,
    stream_call,
    task_call,
    text_of,
    whole,
)

T = TypeVar("T")


def chat(messages: Sequence[t.Message], *, model: str | None = None, **options: Unpack[t.ChatOptions]) -> Call[t.Chat]:
    """The assistant's answer to a conversation."""
    return post_call("/v1/chat/completions", t.Chat, given(messages=list(messages), model=model, **options))


def stream_chat(
    messages: Sequence[t.Message], *, model: str | None = None, **options: Unpack[t.ChatOptions]
) -> StreamCall[t.ChatChunk]:
    """The same, as it comes; the last chunk has the usage."""
    return stream_call("/v1/chat/completions", t.ChatChunk, given(messages=list(messages), model=model, **options))


def complete(
    prompt: str | Sequence[str] | Sequence[int], *, model: str | None = None, **options: Unpack[t.CompletionOptions]
) -> Call[t.Completion]:
    """Continuations of a prompt, of several, or of token ids."""
    return post_call("/v1/completions", t.Completion, given(prompt=plain(prompt), model=model, **options))


def stream_complete(
    prompt: str | Sequence[str] | Sequence[int], *, model: str | None = None, **options: Unpack[t.CompletionOptions]
) -> StreamCall[t.Completion]:
    """The same, as they come."""
    return stream_call("/v1/completions", t.Completion, given(prompt=plain(prompt), model=model, **options))


def embed(
    inputs: str | Sequence[str], *, model: str | None = None, dimensions: int | None = None
) -> Call[t.Embeddings]:
    """A vector for each input."""
    return post_call("/v1/embeddings", t.Embeddings, given(input=plain(inputs), model=model, dimensions=dimensions))


def rerank(
    query: str,
    documents: Sequence[str],
    *,
    model: str | None = None,
    top_n: int | None = None,
    return_documents: bool | None = None,
) -> Call[t.Ranking]:
    """Documents from the most relevant on."""
    fields = given(query=query, documents=list(documents), model=model, top_n=top_n, return_documents=return_documents)
    return post_call("/v1/rerank", t.Ranking, fields)


def classify(
    text: str,
    text_pair: str | None = None,
    *,
    model: str | None = None,
    top_k: int | None = None,
    function_to_apply: str | None = None,
) -> TaskCall[list[t.Label]]:
    """Labels of a text, or of a pair of texts, from the likeliest on."""
    inputs = text if text_pair is None else {"text": text, "text_pair": text_pair}
    parameters = given(top_k=top_k, function_to_apply=function_to_apply)
    return task_call("text-classification", inputs, parameters, model, items(t.Label))


def tag(
    text: str,
    *,
    model: str | None = None,
    aggregation_strategy: str | None = None,
    ignore_labels: Sequence[str] | None = None,
    stride: int | None = None,
) -> TaskCall[list[t.Entity]]:
    """Named spans of a text, with their places."""
    parameters = given(aggregation_strategy=aggregation_strategy, ignore_labels=plain(ignore_labels), stride=stride)
    return task_call("token-classification", text, parameters, model, items(t.Entity))


def answer(
    question: str,
    context: str,
    *,
    model: str | None = None,
    max_answer_len: int | None = None,
    doc_stride: int | None = None,
    handle_impossible_answer: bool | None = None,
) -> TaskCall[t.Span]:
    """The span of the context that answers a question."""
    parameters = given(
        max_answer_len=max_answer_len, doc_stride=doc_stride, handle_impossible_answer=handle_impossible_answer
    )
    return task_call("question-answering", {"question": question, "context": context}, parameters, model, one(t.Span))


def fill(
    text: str, *, model: str | None = None, top_k: int | None = None, targets: Sequence[str] | None = None
) -> TaskCall[list[list[t.Fill]]]:
    """Candidates for each mask of a text, in order."""
    return task_call("fill-mask", text, given(top_k=top_k, targets=plain(targets)), model, _fills)


def fill_spans(
    text: str, *, model: str | None = None, num_candidates: int | None = None, max_span_tokens: int | None = None
) -> TaskCall[t.FilledSpans]:
    """A text whose blanks (`<extra_id_0>`, or `___`) are written."""
    parameters = given(num_candidates=num_candidates, max_span_tokens=max_span_tokens)
    return task_call("span-filling", text, parameters, model, one(t.FilledSpans))


def features(text: str, *, model: str | None = None) -> TaskCall[Any]:
    """The vectors of a text, nested as `feature-extraction` gives them."""
    return task_call("feature-extraction", text, {}, model, lambda value: value)


def similarity(source: str, sentences: Sequence[str], *, model: str | None = None) -> Call[list[float]]:
    """How near each sentence is to the source."""
    inputs = {"source_sentence": source, "sentences": list(sentences)}
    return task_call("sentence-similarity", inputs, {}, model, TypeAdapter(list[float]).validate_python)


def zero_shot(
    text: str,
    labels: Sequence[str],
    *,
    model: str | None = None,
    multi_label: bool | None = None,
    hypothesis_template: str | None = None,
) -> TaskCall[list[t.Label]]:
    """How well each of your own labels fits a text."""
    parameters = given(candidate_labels=list(labels), multi_label=multi_label, hypothesis_template=hypothesis_template)
    return task_call("zero-shot-classification", text, parameters, model, _zero_shot)


def generate(text: str, *, model: str | None = None, **parameters: Unpack[t.Generation]) -> TaskCall[str]:
    """The continuation of a text."""
    return task_call("text-generation", text, parameters, model, text_of("generated_text"))


def stream_generate(
    text: str, *, model: str | None = None, **parameters: Unpack[t.Generation]
) -> StreamCall[t.GeneratedPiece]:
    """The same, token by token."""
    body = given(inputs=text, parameters=dict(parameters), model=model, stream=True)
    return StreamCall("POST", "/v1/tasks/text-generation", event_of(t.GeneratedPiece), body, has_end=False)


def summarize(text: str, *, model: str | None = None, **parameters: Unpack[t.Generation]) -> TaskCall[str]:
    """A shorter text."""
    return task_call("summarization", text, parameters, model, text_of("summary_text"))


def translate(
    text: str,
    *,
    model: str | None = None,
    src_lang: str | None = None,
    tgt_lang: str | None = None,
    **parameters: Unpack[t.Generation],
) -> TaskCall[str]:
    """The text in another language."""
    own = given(src_lang=src_lang, tgt_lang=tgt_lang, **parameters)
    return task_call("translation", text, own, model, text_of("translation_text"))


def rewrite(text: str, *, model: str | None = None, **parameters: Unpack[t.Generation]) -> TaskCall[str]:
    """What an encoder-decoder makes of a text (text2text-generation)."""
    return task_call("text2text-generation", text, parameters, model, text_of("generated_text"))


def next_sentence(text: str, text_pair: str, *, model: str | None = None) -> TaskCall[list[t.Label]]:
    """Does the second text follow the first? IS_NEXT or NOT_NEXT."""
    return task_call("next-sentence-prediction", {"text": text, "text_pair": text_pair}, {}, model, items(t.Label))


def sentence_order(text: str, text_pair: str, *, model: str | None = None) -> TaskCall[list[t.Label]]:
    """Are the two in order? IN_ORDER or SWAPPED."""
    return task_call("sentence-order-prediction", {"text": text, "text_pair": text_pair}, {}, model, items(t.Label))


def perplexity(text: str, target: str | None = None, *, model: str | None = None) -> TaskCall[t.Perplexity]:
    """How well the model foresaw a text, or a target where the text is its source."""
    inputs = text if target is None else {"text": text, "target": target}
    return task_call("perplexity", inputs, {}, model, one(t.Perplexity))


def reward(prompt: str, response: str, *, model: str | None = None) -> TaskCall[t.Reward]:
    """A reward model's score of a response."""
    return task_call("reward", {"prompt": prompt, "response": response}, {}, model, one(t.Reward))


def batch(calls: Iterable[TaskCall[T]]) -> Call[list[T]]:
    """One request for several inputs of one task with the same parameters. Raises ValueError where they differ."""
    asked = list(calls)
    if not asked:
        raise ValueError("a batch has at least one input")
    first = asked[0]
    shared = [{**(call.body or {}), "inputs": None} for call in asked]
    if any(call.path != first.path for call in asked) or any(body != shared[0] for body in shared):
        raise ValueError("a batch has one task, one model and the same parameters throughout")
    body = {**shared[0], "inputs": [(call.body or {})["inputs"] for call in asked]}

    def read(content: bytes) -> list[T]:
        return [known(first.item, value) for value in parsed(content, list)]

    return Call("POST", first.path, read, body)


def tokenize(
    text: str | None = None,
    *,
    messages: Sequence[t.Message] | None = None,
    model: str | None = None,
    add_special_tokens: bool | None = None,
) -> Call[t.Tokens]:
    """A text's tokens, or those of a conversation."""
    fields = given(text=text, messages=plain(messages), model=model, add_special_tokens=add_special_tokens)
    return post_call("/v1/tokenize", t.Tokens, fields)


def detokenize(ids: Sequence[int], *, model: str | None = None, skip_special_tokens: bool = True) -> Call[str]:
    """The text of ids."""
    fields = given(ids=list(ids), model=model, skip_special_tokens=skip_special_tokens)
    return Call("POST", "/v1/detokenize", lambda content: known(text_of("text"), parsed(content, dict)), fields)


def plan_kv_cache(
    *,
    model: str | None = None,
    config: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    dtype: str | None = None,
    page_size: int | None = None,
) -> Call[t.CachePlan]:
    """The memory of a KV cache, for a served model or for a config.json's content."""
    fields = given(model=model, config=config, batch_size=batch_size, seq_len=seq_len, dtype=dtype, page_size=page_size)
    return post_call("/v1/plan/kv-cache", t.CachePlan, fields)


def plan_scaling(
    *,
    compute_flops: float | None = None,
    parameters: float | None = None,
    tokens: float | None = None,
    law: str | None = None,
) -> Call[t.ScalingPlan]:
    """How many parameters and tokens an amount of arithmetic is best spent on."""
    fields = given(compute_flops=compute_flops, parameters=parameters, tokens=tokens, law=law)
    return post_call("/v1/plan/scaling", t.ScalingPlan, fields)


def models() -> Call[list[t.Model]]:
    """What is served."""
    return Call("GET", "/v1/models", listed(t.Model), is_safe=True)


def model(model_id: str) -> Call[t.Model]:
    """One served model."""
    return Call("GET", f"/v1/models/{path_part(model_id)}", whole(t.Model), is_safe=True)


def load_model(name: str, *, source: str | None = None) -> Call[t.Model]:
    """Serve what was unloaded again; with `source`, another folder of the server's machine or Hub id by this name."""
    return post_call("/v1/models/load", t.Model, given(model=name, source=source))


def unload_model(name: str) -> Call[t.Answer]:
    """Stop a model and free its memory, until it is loaded again."""
    return post_call("/v1/models/unload", t.Answer, {"model": name})


def delete_model(model_id: str) -> Call[t.Deleted]:
    """Delete a fine-tuned model."""
    return Call("DELETE", f"/v1/models/{path_part(model_id)}", whole(t.Deleted))


def upload_file(content: bytes | IO[bytes], name: str, *, purpose: str = "fine-tune") -> Call[t.File]:
    """Hand over a data set; a file that is open for reading is not read into memory."""
    return Call(
        "POST", "/v1/files", whole(t.File), files={"file": (PurePath(name).name, content)}, form={"purpose": purpose}
    )


def upload_rows(rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> Call[t.File]:
    """Hand over rows as a data set, one JSON object a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return upload_file("".join(lines).encode(), name)


def files() -> Call[list[t.File]]:
    """What was uploaded."""
    return Call("GET", "/v1/files", listed(t.File), is_safe=True)


def file(file_id: str) -> Call[t.File]:
    """One file."""
    return Call("GET", f"/v1/files/{path_part(file_id)}", whole(t.File), is_safe=True)


def file_content(file_id: str) -> Call[bytes]:
    """What is in a file."""
    return Call("GET", f"/v1/files/{path_part(file_id)}/content", lambda content: content, is_safe=True)


def delete_file(file_id: str) -> Call[t.Deleted]:
    """Delete a file."""
    return Call("DELETE", f"/v1/files/{path_part(file_id)}", whole(t.Deleted))


def create_job(
    model: str,
    training_file: str,
    method: Mapping[str, Any] | None = None,
    *,
    validation_file: str | None = None,
    suffix: str | None = None,
    seed: int | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Call[t.Job]:
    """Queue a training job. `method` is `{"type": "dpo", "dpo": {"hyperparameters": {...}}}` and its kin."""
    fields = given(
        model=model,
        training_file=training_file,
        method=method,
        validation_file=validation_file,
        suffix=suffix,
        seed=seed,
        hyperparameters=hyperparameters,
        metadata=metadata,
    )
    return post_call("/v1/fine_tuning/jobs", t.Job, fields)


def jobs(*, limit: int | None = None, after: str | None = None) -> Call[list[t.Job]]:
    """Jobs, the newest first."""
    return Call("GET", "/v1/fine_tuning/jobs", listed(t.Job), query=query_of(limit=limit, after=after), is_safe=True)


def job(job_id: str) -> Call[t.Job]:
    """One job."""
    return Call("GET", _job_path(job_id), whole(t.Job), is_safe=True)


def cancel_job(job_id: str) -> Call[t.Job]:
    """End a job."""
    return Call("POST", _job_path(job_id, "cancel"), whole(t.Job))


def pause_job(job_id: str) -> Call[t.Job]:
    """Let a job write a checkpoint and wait."""
    return Call("POST", _job_path(job_id, "pause"), whole(t.Job))


def resume_job(job_id: str) -> Call[t.Job]:
    """Go on with a paused job."""
    return Call("POST", _job_path(job_id, "resume"), whole(t.Job))


def job_events(job_id: str, *, limit: int | None = None, after: str | None = None) -> Call[list[t.JobEvent]]:
    """What happened to a job, the newest first."""
    query = query_of(limit=limit, after=after)
    return Call("GET", _job_path(job_id, "events"), listed(t.JobEvent), query=query, is_safe=True)


def stream_job_events(job_id: str, *, last_id: str | None = None) -> StreamCall[tuple[str | None, t.JobEvent]]:
    """What happens to a job until it ends, each event with the id after which a new stream may go on."""
    read = event_of(t.JobEvent)
    headers = {"last-event-id": last_id} if last_id is not None else None
    path = _job_path(job_id, "events") + "?stream=true"
    return StreamCall("GET", path, lambda event: (event.id, read(event)), headers=headers, has_end=False)


def checkpoints(job_id: str) -> Call[list[t.Checkpoint]]:
    """A job's checkpoints."""
    return Call("GET", _job_path(job_id, "checkpoints"), listed(t.Checkpoint), is_safe=True)


def is_alive() -> Call[bool]:
    """Does the process answer? Raises where it does not."""
    return Call("GET", "/health", lambda _content: True, is_safe=True)


def ready() -> Call[t.Readiness]:
    """Can every model answer, and which cannot yet?"""
    return Call("GET", "/ready", whole(t.Readiness), is_safe=True, also=(503,))


def metrics() -> Call[str]:
    """The numbers that Prometheus scrapes."""
    return Call("GET", "/metrics", bytes.decode, is_safe=True)


def version() -> Call[str]:
    """Which trefoil the server is."""
    return Call("GET", "/version", lambda content: known(t.Version.model_validate, parsed(content, dict)).version)


def _job_path(job_id: str, *rest: str) -> str:
    return "/".join(("/v1/fine_tuning/jobs", quote(job_id, safe=""), *rest))


def _fills(value: Any) -> list[list[t.Fill]]:
    """One mask's candidates, or those of several."""
    nested = value if value and isinstance(value[0], list) else [value]
    return TypeAdapter(list[list[t.Fill]]).validate_python(nested)


def _zero_shot(value: Any) -> list[t.Label]:
    """Labels with scores, in either of the two shapes that servers give."""
    if isinstance(value, dict):
        return [
            t.Label(label=label, score=score) for label, score in zip(value["labels"], value["scores"], strict=True)
        ]
    return TypeAdapter(list[t.Label]).validate_python(value)
