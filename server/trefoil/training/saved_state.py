"""A training run on disk: weights, AdamW's moments, random state and position, in one safetensors file.

The file appears whole or not at all: written beside, flushed to the disk, renamed.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trefoil.training.folders import flush

FILE = "training_state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Position:
    """Steps done, the epoch, how many of its steps are behind us; updates of the weights, and rows learned from."""

    step: int
    epoch: int
    taken: int
    updates: int
    num_rows: int


class StateError(ValueError):
    """A checkpoint that belongs to another run."""


def save(
    folder: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, position: Position, *, run: str
) -> None:
    """Replace the folder's checkpoint by this state; `run` tells runs of other data or another recipe apart."""
    tensors: dict[str, Tensor] = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in named.items():
        tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.{os.getpid()}.part"
    try:
        save_file(tensors, temporary, metadata={"run": run, "position": json.dumps(asdict(position))})
        flush(temporary)
        temporary.replace(folder / FILE)
        flush(folder)
    finally:
        temporary.unlink(missing_ok=True)


def load(folder: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, *, run: str) -> Position | None:
    """Put the folder's state into weights, optimizer and random generators; None where it has no checkpoint.

    Raises StateError where the checkpoint is of another run.
    """
    if not (folder / FILE).is_file():
        return None
    with safe_open(folder / FILE, framework="pt") as file:
        if file.metadata()["run"] != run:
            raise StateError(f"{FILE} was written with another recipe or other data: start in an empty folder")
        position = Position(**json.loads(file.metadata()["position"]))
        weights = {key.removeprefix("weight.") for key in file.keys() if key.startswith("weight.")}  # noqa: SIM118
        if weights != set(named):
            raise StateError(f"{FILE} holds other parameters than this model: {sorted(weights ^ set(named))[:3]}")
        for name, parameter in named.items():
            with torch.no_grad():
                parameter.copy_(file.get_tensor(f"weight.{name}"))
            moments = {moment: file.get_tensor(f"{moment}.{name}").to(parameter.device) for moment in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(position.updates)), **moments}
        torch.set_rng_state(file.get_tensor("random.cpu"))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor("random.cuda"))
    return position
