"""Rows with labels to readings: classes of texts, tags of words, where answers stand, which of two texts is better."""

from trefoil.hyperparameters import Classification, TokenClassification
from trefoil.rows import Labelled, Question, Row, RowError, Tagged
from trefoil.training.data import Reader, pair_of
from trefoil.training.examples import IGNORED, Comparison, Reading
from trefoil_models.cutting import Cut, Encoding, TooLittleRoomError, cut_to


def class_reading(row: Row, reader: Reader, given: Classification) -> Reading:
    """A text or a pair and its class; several classes, or a number, where the problem is so. Raises RowError."""
    if not isinstance(row, Labelled):
        raise RowError("it has no label: give text and label")
    encoding = _encoded(reader, row.text, row.text_pair)
    return _reading(encoding, _class_labels(row.label, given))


def _class_labels(label: str | int | float | tuple[str, ...], given: Classification) -> tuple[float, ...]:
    if given.problem_type == "regression":
        if isinstance(label, str | tuple):
            raise RowError(f"the label {label!r} is no number, as others are")
        return (float(label),)
    assert not isinstance(given.labels, str)
    if given.problem_type == "multi_label_classification":
        if isinstance(label, int | float):
            raise RowError(f"the label {label!r} is a number, others are lists of texts")
        own = label if isinstance(label, tuple) else (label_name(label),)
        for one in own:
            number_of(one, given.labels)
        return tuple(float(one in own) for one in given.labels)
    if isinstance(label, tuple):
        raise RowError("it has several labels, others have one")
    return (number_of(label_name(label), given.labels),)


def tag_reading(row: Row, reader: Reader, given: TokenClassification) -> Reading:
    """Words and their tags: the first token of each word is labelled, the others teach nothing. Raises RowError."""
    if not isinstance(row, Tagged):
        raise RowError("it has no tags: give tokens and tags")
    assert not isinstance(given.labels, str)
    starts, text = {}, ""
    for word, tag in zip(row.tokens, row.tags, strict=True):
        text += " " if text else ""
        starts[len(text)] = number_of(label_name(tag), given.labels)
        text += word
    encoding = _encoded(reader, text, None)
    labels = [_tag_at(text, start, end, starts) for start, end in encoding.offsets]
    if all(label == IGNORED for label in labels):
        raise RowError("nothing to learn: no token of a word is left")
    return _reading(encoding, tuple(labels))


def _tag_at(text: str, start: int, end: int, starts: dict[int, int]) -> int:
    """The tag of the word that begins with this token; a token may take the space before it along."""
    if start == end:
        return IGNORED
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return starts.get(start, IGNORED)


def answer_reading(row: Row, reader: Reader) -> Reading:
    """A question with its text and the rows at which the first answer begins and ends; row 0 twice where there is none,
    or where it was cut off. Raises RowError.
    """
    if not isinstance(row, Question):
        raise RowError("it is no question with answers: give question, context and answers")
    encoding = _encoded(reader, row.question, row.context, cut="second")
    if not row.texts:
        return _reading(encoding, (0, 0))
    first, last = row.starts[0], row.starts[0] + len(row.texts[0])
    inside = [at for at in encoding.rows_of(1) if encoding.offsets[at][0] < last and encoding.offsets[at][1] > first]
    is_whole = bool(inside) and encoding.offsets[inside[-1]][1] >= last
    return _reading(encoding, (inside[0], inside[-1]) if is_whole else (0, 0))


def comparison_of(row: Row, reader: Reader) -> Comparison:
    """Both answers of a preference with their prompt, whole. Raises RowError."""
    pair = pair_of(row, reader)
    return Comparison(*(Reading(one.ids, (0,) * len(one.ids)) for one in pair))


def label_name(label: str | float) -> str:
    """A label's name; numbers are named as transformers names them."""
    return label if isinstance(label, str) else f"LABEL_{label}"


def number_of(label: str, labels: list[str]) -> int:
    """Raises RowError for a label that is not among those known."""
    if label not in labels:
        raise RowError(f"the label {label!r} is none of {', '.join(map(repr, labels[:20]))}")
    return labels.index(label)


def _encoded(reader: Reader, text: str, pair: str | None, *, cut: Cut = "longest") -> Encoding:
    if pair is not None and not reader.tokenizer.takes_pairs:
        raise RowError("this model reads no pairs of texts")
    encoding = reader.tokenizer.encode(text, pair=pair)
    if len(encoding) > reader.longest and not reader.truncates:
        raise RowError(f"{len(encoding)} tokens, the limit is {reader.longest}: shorten it, split it or set truncation")
    try:
        return cut_to(encoding, reader.longest, cut=cut)
    except TooLittleRoomError as error:
        raise RowError(str(error)) from error


def _reading(encoding: Encoding, labels: tuple[float, ...]) -> Reading:
    return Reading(tuple(encoding.ids), tuple(encoding.type_ids), labels)
