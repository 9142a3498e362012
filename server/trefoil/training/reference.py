"""What the reference model thinks of every pair, asked once a job and kept, so that a resumed one compares with the
same numbers.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trefoil.training.examples import Pair
from trefoil.training.folders import flush
from trefoil.training.objectives.dpo import with_reference
from trefoil_models.checkpoint import Model

FILE = "reference.safetensors"


def known_pairs(model: Model, pairs: Sequence[Pair], folder: Path, name: str, *, budget: int) -> list[Pair]:
    """The pairs with the reference's log p: from the folder, or from the model, which must not have changed yet."""
    path = folder / f"{name}.{FILE}"
    if not path.is_file():
        known = with_reference(model, pairs, budget=budget)
        values_N2 = torch.tensor([(pair.ref_chosen, pair.ref_rejected) for pair in known], dtype=torch.float64)
        temporary = path.with_suffix(".part")
        save_file({"logprobs": values_N2}, temporary)
        flush(temporary)
        temporary.replace(path)
    rows = load_file(path)["logprobs"].tolist()
    return [
        replace(pair, ref_chosen=chosen, ref_rejected=rejected)
        for pair, (chosen, rejected) in zip(pairs, rows, strict=True)
    ]
