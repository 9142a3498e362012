"""What a checkpoint can do, from its kind and its heads: the tasks that the API offers for it."""

from trefoil_models.heads import Heads

TASKS_OF_HEADS = {
    "next": ("text-generation", "perplexity"),
    "mask": ("fill-mask", "perplexity"),
    "class": ("text-classification",),
    "tag": ("token-classification",),
    "span": ("question-answering",),
}
PAIR_TASKS = {"albert": "sentence-order-prediction"}
EMBEDDING = ("feature-extraction", "embeddings", "sentence-similarity", "rerank")


def tasks_of(kind: str, model_type: str, heads: Heads) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the checkpoint was made for, and what it can do besides.

    Hidden rows can always be asked for; they are the purpose of an encoder without a head that reads them for
    something else.
    """
    tasks = [task for head in sorted(heads.names) for task in TASKS_OF_HEADS.get(head, ())]
    if "pair" in heads:
        tasks.append(PAIR_TASKS.get(model_type, "next-sentence-prediction"))
    if kind == "encoder" and not heads.names & {"class", "tag", "span"}:
        return (*tasks, *EMBEDDING), ()
    return tuple(tasks), EMBEDDING if kind != "encoder-decoder" else ()
