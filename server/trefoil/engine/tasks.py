"""What a checkpoint can do, from its kind, its heads and its labels: the tasks that the API offers for it."""

from trefoil_models.heads import Heads
from trefoil_models.model_folder import ModelFolder

TASKS_OF_HEADS = {
    "next": ("text-generation", "perplexity"),
    "mask": ("fill-mask", "perplexity"),
    "class": ("text-classification",),
    "tag": ("token-classification",),
    "span": ("question-answering",),
    "pair": ("next-sentence-prediction",),
}
OWN_TASKS = {"albert": {"pair": ("sentence-order-prediction",)}}
"""Where a family means something else by a head."""
TEXT_TO_TEXT = ("text2text-generation", "summarization", "translation")
WITH_SENTINELS = ("t5", "mt5")
EMBEDDING = ("embeddings", "feature-extraction", "sentence-similarity", "rerank")


def tasks_of(folder: ModelFolder, kind: str, heads: Heads) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the checkpoint was made for, and what it can do besides.

    Hidden rows can always be asked for; they are the purpose of an encoder without a head that reads them for
    something else.
    """
    if kind == "encoder-decoder":
        spans = ("span-filling",) if folder.model_type in WITH_SENTINELS else ()
        return (*TEXT_TO_TEXT, *spans), ("text-generation", "perplexity")
    table = {**TASKS_OF_HEADS, **OWN_TASKS.get(folder.model_type, {})}
    tasks = [task for head in sorted(heads.names) for task in table[head]]
    if "class" in heads:
        tasks += _tasks_of_labels(folder.labels)
        tasks += ["reward"] if kind == "decoder" and len(folder.labels) == 1 else []
    if kind == "encoder" and not heads.names & {"class", "tag", "span"}:
        return (*tasks, *EMBEDDING), ()
    return tuple(tasks), tuple(task for task in EMBEDDING if task not in tasks)


def _tasks_of_labels(labels: tuple[str, ...]) -> list[str]:
    """One label is a score of how well a pair fits; entailment among several tells what a text is about."""
    if len(labels) == 1:
        return ["rerank"]
    return ["zero-shot-classification"] if any(label.lower().startswith("entail") for label in labels) else []
