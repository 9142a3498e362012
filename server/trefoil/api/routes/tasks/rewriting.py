"""POST /v1/tasks/summarization, /translation and /text2text-generation: Hugging Face's text-to-text tasks."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trefoil.api.deps import Models, while_connected
from trefoil.api.fleet import Fleet
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.sse import json_response
from trefoil.api.text_to_text import (
    Rewriting,
    TextRequest,
    TranslationRequest,
    folder_wishes,
    rewriting,
    start,
    texts_of,
    translation,
)

router = APIRouter(route_class=JsonRoute)


class Summary(Answer):
    summary_text: str


class Translation(Answer):
    translation_text: str


class Rewritten(Answer):
    generated_text: str


@router.post("/v1/tasks/summarization", responses=says(list[Summary] | list[list[Summary]]))
async def summarize(body: TextRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Say the same in fewer words."""
    served = models.find(body.model, model, task="summarization")
    return await _rewritten(body, request, models, rewriting(served, "summarization"), "summary_text")


@router.post("/v1/tasks/translation", responses=says(list[Translation] | list[list[Translation]]))
async def translate(body: TranslationRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Say the same in another language."""
    served = models.find(body.model, model, task="translation")
    how = translation(served, body.parameters.src_lang, body.parameters.tgt_lang)
    return await _rewritten(body, request, models, how, "translation_text")


@router.post("/v1/tasks/text2text-generation", responses=says(list[Rewritten] | list[list[Rewritten]]))
async def generate(body: TextRequest, request: Request, models: Models, model: str | None = None) -> Response:
    """Whatever the model makes of a text; a task's prefix is the caller's to write."""
    served = models.find(body.model, model, task="text2text-generation")
    return await _rewritten(body, request, models, Rewriting(served, "text2text-generation", ""), "generated_text")


async def _rewritten(body: TextRequest, request: Request, fleet: Fleet, how: Rewriting, name: str) -> Response:
    """One object for each answer; a list of texts gives a list of such lists where several answers were asked for."""
    parameters = body.parameters
    count = parameters.generation(folder_wishes(how.model, how.task)).num_return_sequences or 1
    streams = await start(fleet, how, body.texts, parameters)

    def close() -> None:
        for stream in streams:
            stream.close()

    found = texts_of(streams, count, cleans_up=parameters.clean_up_tokenization_spaces is True)
    answers = [[{name: text} for text in texts] for texts in await while_connected(request, found, close)]
    if isinstance(body.inputs, str):
        return json_response(answers[0])
    return json_response(answers if count > 1 else [own[0] for own in answers])
