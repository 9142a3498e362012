"""By method: which rows it takes, and what examples become of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

from trefoil import hyperparameters as given_kinds
from trefoil.hyperparameters import Hyperparameters
from trefoil.rows import Line, Row, RowError, Text
from trefoil.training.data import Reader, answer_example, asked, pair_of, text_examples
from trefoil.training.labelled import answer_reading, class_reading, comparison_of, tag_reading
from trefoil.training.plain_text import retold_windows, sentence_pairs, text_readings, text_windows
from trefoil_models.chat_template import ChatTemplateError

E = TypeVar("E")
Read = Callable[[Iterable[Line], Reader, Any], Iterator[Sized]]


def examples_of(given: Hyperparameters, lines: Iterable[Line], reader: Reader) -> Iterator[Any]:
    """What a method trains on. Raises RowError naming file, line and cause."""
    return READERS[type(given)](lines, reader, given)


def told_by_line(lines: Iterable[Line], make: Callable[[Row], E]) -> Iterator[E]:
    """What is made of each row; an error names the line."""
    for line in lines:
        try:
            yield make(line.row)
        except (RowError, ChatTemplateError) as error:
            raise RowError(f"{line.file}, line {line.number}: {error}") from error


def _each(make: Callable[[Row, Reader, Any], E]) -> Callable[[Iterable[Line], Reader, Any], Iterator[E]]:
    """Examples line by line."""
    return lambda lines, reader, given: told_by_line(lines, lambda row: make(row, reader, given))


_asked = _each(lambda row, reader, given: asked(row, reader, room=given.max_completion_tokens))


def _pretrain(lines: Iterable[Line], reader: Reader, given: given_kinds.Pretrain) -> Iterator[Any]:
    """Plain text as the objective takes it."""
    texts = told_by_line(lines, _text)
    match given.objective:
        case "mlm":
            return text_readings(texts, reader)
        case "mlm+nsp" | "mlm+sop":
            return sentence_pairs(texts, reader, seed=0, swaps=given.objective == "mlm+sop")
        case "span_corruption":
            return text_windows(texts, reader)
        case "text_infilling":
            return retold_windows(texts, reader)
        case _:
            return text_examples(texts, reader.tokenizer, window=reader.longest, eos_id=reader.end_ids[0])


def _text(row: Row) -> str:
    if isinstance(row, Text):
        return row.text
    raise RowError("it has no plain text to learn: give text")


READERS: Mapping[type[Hyperparameters], Read] = {
    given_kinds.Supervised: _each(lambda row, reader, given: answer_example(row, reader)),
    given_kinds.Dpo: _each(lambda row, reader, given: pair_of(row, reader)),
    given_kinds.Ppo: _asked,
    given_kinds.Grpo: _asked,
    given_kinds.Pretrain: _pretrain,
    given_kinds.Reward: _each(lambda row, reader, given: comparison_of(row, reader)),
    given_kinds.Classification: _each(class_reading),
    given_kinds.TokenClassification: _each(tag_reading),
    given_kinds.QuestionAnswering: _each(lambda row, reader, given: answer_reading(row, reader)),
}
