"""What a job reads: its files as examples for its model. The same for looking through them and for training."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trefoil.hyperparameters import Hyperparameters, read_hyperparameters
from trefoil.rows import RowError, read_lines
from trefoil.store.jobs import Spec
from trefoil.store.store import Store
from trefoil.training.data import Reading, examples_of
from trefoil.training.examples import Example, Pair
from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import ModelFolder
from trefoil_models.tokenizer import Tokenizer

LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


@dataclass(frozen=True, slots=True)
class Sources:
    """One job's files and how its model reads them."""

    store: Store
    spec: Spec
    folder: ModelFolder
    given: Hyperparameters
    reading: Reading

    @classmethod
    def open(cls, store: Store, spec: Spec) -> "Sources":
        """Raises CheckpointError where the base model is gone, InvalidRequest for hyperparameters that cannot be."""
        given = read_hyperparameters(spec.method, spec.resolved or spec.hyperparameters, path="hyperparameters")
        folder = ModelFolder.read(Path(spec.base))
        tokenizer = Tokenizer.load(folder.path)
        end_ids = folder.eos_ids or ((tokenizer.eos_id,) if tokenizer.eos_id is not None else ())
        if not end_ids:
            raise CheckpointError("the base model has no token that ends a text: its config.json needs eos_token_id")
        longest, start_id = _longest(folder, given), _start_id(folder)
        return cls(store, spec, folder, given, Reading(tokenizer, end_ids, longest, given.truncation, start_id))

    def training(self) -> Iterator[Example | Pair]:
        """Raises RowError naming file, line and cause."""
        return self._examples(self.spec.training_file)

    def validation(self) -> Iterator[Example | Pair]:
        """None where the job has no validation file. Raises RowError."""
        return iter(()) if self.spec.validation_file is None else self._examples(self.spec.validation_file)

    def _examples(self, file_id: str) -> Iterator[Example | Pair]:
        file = self.store.files.get(file_id)
        return examples_of(self.spec.method, read_lines(self.store.files.path(file_id), file.filename), self.reading)

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


def _start_id(folder: ModelFolder) -> int | None:
    """What an encoder-decoder's decoder begins with. Raises CheckpointError where its config.json does not say."""
    if not folder.config.flag("is_encoder_decoder", False):
        return None
    named = "decoder_start_token_id" if "decoder_start_token_id" in folder.config else "pad_token_id"
    return folder.config.integer(named)


def _longest(folder: ModelFolder, given: Hyperparameters) -> int:
    """What the model can read, or less where that was asked for."""
    limit = next((folder.config.size(key) for key in LENGTH_KEYS if key in folder.config), 2**31)
    return min(given.max_length or limit, limit)
