"""What a job reads: its files as examples for its model. The same for looking through them and for training."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trefoil.hyperparameters import Hyperparameters, OfHead, Pretrain, Reward, read_hyperparameters
from trefoil.rows import Line, RowError, read_lines
from trefoil.store.jobs import Spec
from trefoil.store.store import Store
from trefoil.training.data import Reader
from trefoil.training.labels import with_labels
from trefoil.training.readers import examples_of
from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import ModelFolder
from trefoil_models.tokenizer import Tokenizer

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_sequence_length")
SHIFTED = ("roberta", "xlm-roberta")
"""Families whose positions begin after the padding's id."""


@dataclass(frozen=True, slots=True)
class Sources:
    """One job's files and how its model reads them."""

    store: Store
    spec: Spec
    folder: ModelFolder
    given: Hyperparameters
    reader: Reader

    @classmethod
    def open(cls, store: Store, spec: Spec) -> "Sources":
        """Raises CheckpointError where the base model is gone, InvalidRequest for hyperparameters that cannot be,
        RowError where the rows whose labels are to be found cannot be read.
        """
        given = read_hyperparameters(spec.method, spec.resolved or spec.hyperparameters, path="hyperparameters")
        folder = ModelFolder.read(Path(spec.base))
        tokenizer = Tokenizer.load(folder.path)
        end_ids = tokenizer.end_ids(folder.eos_ids)
        if not end_ids and _ends_texts(given):
            raise CheckpointError("the base model has no token that ends a text: its config.json needs eos_token_id")
        limit, start_id = longest_of(folder), _start_id(folder)
        longest = min(given.max_length or limit, limit)
        sources = cls(store, spec, folder, given, Reader(tokenizer, end_ids, longest, given.truncation, start_id))
        return replace(sources, given=with_labels(given, sources._lines(spec.training_file), folder))

    def training(self) -> Iterator[Any]:
        """Raises RowError naming file, line and cause."""
        return self._examples(self.spec.training_file)

    def validation(self) -> Iterator[Any]:
        """None where the job has no validation file. Raises RowError."""
        return iter(()) if self.spec.validation_file is None else self._examples(self.spec.validation_file)

    def _examples(self, file_id: str) -> Iterator[Any]:
        return examples_of(self.given, self._lines(file_id), self.reader)

    def _lines(self, file_id: str) -> Iterator[Line]:
        return read_lines(self.store.files.path(file_id), self.store.files.get(file_id).filename)

    def count(self) -> tuple[int, int]:
        """How many examples there are to train on and how many rows they have. Raises RowError for either file."""
        num_examples, num_rows = 0, 0
        for example in self.training():
            num_examples, num_rows = num_examples + 1, num_rows + len(example)
        for _ in self.validation():
            pass
        if not num_examples:
            raise RowError("the training file gives nothing to learn")
        return num_examples, num_rows


def _ends_texts(given: Hyperparameters) -> bool:
    """Must the model know a token that ends a text?"""
    if isinstance(given, Pretrain):
        return not given.objective.startswith("mlm")
    return isinstance(given, Reward) or not isinstance(given, OfHead)


def _start_id(folder: ModelFolder) -> int | None:
    """What an encoder-decoder's decoder begins with. Raises CheckpointError where its config.json does not say."""
    if not folder.config.flag("is_encoder_decoder", False):
        return None
    named = "decoder_start_token_id" if "decoder_start_token_id" in folder.config else "pad_token_id"
    return folder.config.integer(named)


def longest_of(folder: ModelFolder) -> int:
    """How many tokens the model can read."""
    limit = next((folder.config.size(key) for key in LENGTH_KEYS if key in folder.config), 2**31)
    if folder.model_type in SHIFTED:
        limit -= folder.config.integer("pad_token_id", 1) + 1
    return limit
