"""POST /v1/tasks/question-answering: the words of a context that answer a question."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from trefoil.api.answers import CONTEXT, Reader
from trefoil.api.deps import Models
from trefoil.api.fleet import Fleet, ServedModel
from trefoil.api.json_route import JsonRoute
from trefoil.api.reference import Answer, says
from trefoil.api.scoring import Several, answered, check_windowed, score, text_limit
from trefoil.api.sse import json_response
from trefoil.api.text import StopText as SomeText
from trefoil.errors import InvalidRequest
from trefoil_models.cutting import Encoding, TooLittleRoomError, windows
from trefoil_models.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute)

MOST_TOKENS = 384
LONGEST_STRIDE = 128
MOST_ANSWERS = 1000


class Question(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    question: SomeText
    context: SomeText


class Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    top_k: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    max_answer_len: Annotated[int, Field(ge=1)] | None = None
    max_question_len: Annotated[int, Field(ge=1)] | None = None
    max_seq_len: Annotated[int, Field(ge=1)] | None = None
    doc_stride: Annotated[int, Field(ge=0)] | None = None
    handle_impossible_answer: bool | None = None
    align_to_words: bool | None = None

    def reader(self, cls_id: int | None) -> Reader:
        """What is wanted, with transformers' defaults."""
        return Reader(
            top_k=self.top_k or 1,
            max_answer_len=self.max_answer_len or 15,
            handle_impossible_answer=bool(self.handle_impossible_answer),
            align_to_words=self.align_to_words is not False,
            cls_id=cls_id,
        )


class QuestionAnsweringRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: Question | Several[Question]
    parameters: Parameters = Parameters()
    model: str | None = None


class Found(Answer):
    score: float
    start: int
    end: int
    answer: str


@router.post("/v1/tasks/question-answering", responses=says(Found | list[Found] | list[Found | list[Found]]))
async def answer(
    body: QuestionAnsweringRequest, request: Request, models: Models, model: str | None = None
) -> Response:
    """The best answer, or with `top_k` the best ones, for a question or each of a list."""
    served = models.find(body.model, model, task="question-answering")
    questions = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    param = "inputs" if isinstance(body.inputs, list) else "inputs.context"
    check_windowed([question.context for question in questions], param=param)
    parts = [await _windows(models, served, question, body.parameters) for question in questions]
    said = iter(await answered(request, score(served, [window for part in parts for window in part], head="span")))
    reader = body.parameters.reader(served.tokenizer.cls_id)
    answers = []
    for question, part in zip(questions, parts, strict=True):
        scores = [next(said) for _ in part]
        read = partial(reader.answers, question.context, part, scores)
        bodies = [one.body() for one in await models.off_loop(len(question.context), read)]
        answers.append(bodies[0] if len(bodies) == 1 else bodies)
    return json_response(answers if isinstance(body.inputs, list) else answers[0])


async def _windows(fleet: Fleet, model: ServedModel, asked: Question, parameters: Parameters) -> list[Encoding]:
    """The context in windows, each behind the question."""
    limit = min(parameters.max_seq_len or MOST_TOKENS, text_limit(model))
    stride = min(limit // 2, LONGEST_STRIDE) if parameters.doc_stride is None else parameters.doc_stride
    if stride > limit:
        raise InvalidRequest(f"doc_stride {stride} is more than max_seq_len {limit}", param="parameters.doc_stride")
    tokenizer, most = model.tokenizer, parameters.max_question_len

    def cut() -> list[Encoding]:
        question = asked.question if most is None else _shortened(asked.question, most, tokenizer)
        return list(windows(tokenizer.encode(question, pair=asked.context), limit, text=CONTEXT, stride=stride))

    try:
        return await fleet.off_loop(len(asked.question) + len(asked.context), cut)
    except TooLittleRoomError as error:
        raise InvalidRequest(f"question and doc_stride are too long: {error}", param="inputs.question") from error


def _shortened(question: str, num_tokens: int, tokenizer: Tokenizer) -> str:
    offsets = tokenizer.encode(question, add_special_tokens=False).offsets
    return question if len(offsets) <= num_tokens else question[: offsets[num_tokens - 1][1]]
