"""A reward model scores answers: the number that `/v1/tasks/reward` or, of one label, `/v1/tasks/text-classification`
is made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trefoil.rows import Message, RowError
from trefoil.training.batch import plan_epoch
from trefoil.training.examples import Reading
from trefoil.training.reading import reading_rows, text_rows
from trefoil.training.sources import longest_of
from trefoil_models import checkpoint
from trefoil_models.checkpoint import Model
from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import ModelFolder
from trefoil_models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Judge:
    """A model with a class head, whose output `number` is the score. `end_id` ends what a reward model reads."""

    model: Model
    tokenizer: Tokenizer
    longest: int
    number: int
    end_ids: tuple[int, ...]
    budget: int

    @classmethod
    def load(cls, path: Path, label: str | None, *, dtype: torch.dtype, device: torch.device, budget: int) -> "Judge":
        """Raises CheckpointError where the folder is gone, or has no such label."""
        folder = ModelFolder.read(path)
        if label is not None and label not in folder.labels:
            raise CheckpointError(f"reward_label {label!r} is none of {', '.join(folder.labels[:20])}")
        model, tokenizer = checkpoint.load(path, dtype=dtype, device=device), Tokenizer.load(path)
        end_ids = tokenizer.end_ids(folder.eos_ids)
        is_reward_model = model.kind == "decoder" and len(folder.labels) == 1
        return cls(
            model,
            tokenizer,
            longest_of(folder),
            0 if label is None else folder.labels.index(label),
            end_ids if is_reward_model else (),
            budget,
        )

    @torch.no_grad()
    def scores(self, answered: Sequence[tuple[str | tuple[Message, ...], str]]) -> list[float]:
        """How good each answer to its prompt is. Raises RowError where one is longer than the model can read."""
        readings = [self._reading(prompt, answer) for prompt, answer in answered]
        scores = [0.0] * len(readings)
        for numbers in plan_epoch([len(one) for one in readings], self.budget, seed=0, epoch=0):
            rows, attend = reading_rows(self.model, [readings[number] for number in numbers])
            hidden_TM: Tensor = self.model(rows, attend)
            scores_NC = self.model.heads["class"](hidden_TM[text_rows(self.model, attend.packing)]).float()
            for number, score in zip(numbers, scores_NC[:, self.number].tolist(), strict=True):
                scores[number] = score
        return scores

    def _reading(self, prompt: str | tuple[Message, ...], answer: str) -> Reading:
        if isinstance(prompt, str):
            encoding = self.tokenizer.encode(prompt + answer)
        else:
            messages = [*prompt, {"role": "assistant", "content": answer}]
            encoding = self.tokenizer.encode_chat(self.tokenizer.write_chat(messages, add_generation_prompt=False))
        ids, types = list(encoding.ids), list(encoding.type_ids)
        if self.end_ids and ids[-1:] and ids[-1] not in self.end_ids:
            ids, types = [*ids, self.end_ids[0]], [*types, 0]
        if not 0 < len(ids) <= self.longest:
            raise RowError(
                f"the reward model reads at most {self.longest} tokens, a prompt and its answer have {len(ids)}: "
                "shorten the prompts or lower max_completion_tokens"
            )
        return Reading(tuple(ids), tuple(types))
