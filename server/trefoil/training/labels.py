"""Which labels a job's rows have, and what kind of problem that makes; the model's own where it knows them already."""

from collections.abc import Iterable

import msgspec

from trefoil.hyperparameters import Classification, Hyperparameters, TokenClassification
from trefoil.rows import Labelled, Line, RowError, Tagged
from trefoil.training.labelled import label_name
from trefoil_models.model_folder import ModelFolder

NOTHING = "O"
"""The tag of words that are part of nothing; the first of all."""


def with_labels(given: Hyperparameters, lines: Iterable[Line], folder: ModelFolder) -> Hyperparameters:
    """The same with labels and problem type known. Raises RowError where rows do not agree."""
    if isinstance(given, Classification):
        return _classes(given, lines, folder)
    if isinstance(given, TokenClassification) and given.labels == "auto":
        tags = {tag for line in lines if isinstance(line.row, Tagged) for tag in line.row.tags}
        return msgspec.structs.replace(given, labels=_known(tags, folder, "ForTokenClassification"))
    return given


def _classes(given: Classification, lines: Iterable[Line], folder: ModelFolder) -> Classification:
    if given.labels != "auto" and given.problem_type != "auto":
        return given
    told = [line.row.label for line in lines if isinstance(line.row, Labelled)]
    problem = _problem(told) if given.problem_type == "auto" else given.problem_type
    if given.labels != "auto":
        return msgspec.structs.replace(given, problem_type=problem)
    if problem == "regression":
        return msgspec.structs.replace(given, problem_type=problem, labels=["LABEL_0"])
    own = {one for label in told for one in (label if isinstance(label, tuple) else (label,))}
    labels = _known(own, folder, "ForSequenceClassification")
    return msgspec.structs.replace(given, problem_type=problem, labels=labels)


def _problem(labels: list[str | int | float | tuple[str, ...]]) -> str:
    if any(isinstance(label, tuple) for label in labels):
        return "multi_label_classification"
    return "regression" if any(isinstance(label, float) for label in labels) else "single_label_classification"


def _known(own: set[str | int] | set[str | int | float], folder: ModelFolder, end: str) -> list[str]:
    """In order of their names, numbers by size; the model's own where it has a head for all of them."""
    names = {label_name(one) for one in own}
    if any(name.endswith(end) for name in folder.architectures) and names <= set(folder.labels):
        return list(folder.labels)
    numbers = [one for one in own if isinstance(one, int)]
    if len(numbers) == len(own):
        if min(numbers, default=0) < 0:
            raise RowError("a label that is a number counts from 0")
        return [label_name(number) for number in range(max(numbers, default=0) + 1)]
    return sorted(names, key=lambda name: (name != NOTHING, name))
