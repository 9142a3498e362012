"""The tensors of a checkpoint folder: which there are, their shapes, and reading one, memory-mapped.

safetensors wins where both kinds exist; `.bin` is opened with `weights_only`, so a pickle can run nothing.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trefoil_models.config_keys import CheckpointError
from trefoil_models.model_folder import read_json


class WeightFile(Protocol):
    """One file of tensors."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor:
        """The tensor, backed by the file's own pages where the format allows."""
        ...


class SafetensorsFile:
    """A `.safetensors` file; its header is checked against the file's length when opened."""

    def __init__(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError, struct.error) as error:
            raise CheckpointError(f"{path.name} is damaged: {error}") from error
        self._file = file
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    def read(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"tensor {name} cannot be read: {error}") from error
        return tensor


class PickledFile:
    """A `.bin` file of torch.save, opened with `weights_only` and memory-mapped."""

    def __init__(self, path: Path) -> None:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except Exception as error:  # torch.load raises a dozen types for a bad file; each means the same here
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path.name} is damaged or not a plain weight file: {reason}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path.name} holds no dictionary of tensors")
        self._values = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        self.shapes = {name: tuple(value.shape) for name, value in self._values.items()}

    def read(self, name: str) -> Tensor:
        return self._values[name]


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a folder by name."""

    files: Mapping[str, WeightFile]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.files[name].shapes[name]

    def read(self, name: str) -> Tensor:
        return self.files[name].read(name)


def open_weights(folder: Path) -> Weights:
    """Raises CheckpointError where there is no weight file, a shard is missing, or a header is damaged."""
    for stem, opener in (("model.safetensors", SafetensorsFile), ("pytorch_model.bin", PickledFile)):
        if (folder / stem).is_file():
            file = opener(folder / stem)
            return Weights(dict.fromkeys(file.shapes, file))
        if (folder / f"{stem}.index.json").is_file():
            return _open_shards(folder, f"{stem}.index.json", opener)
    raise CheckpointError(
        f"no weights in {folder}: expected model.safetensors, model.safetensors.index.json, pytorch_model.bin "
        "or pytorch_model.bin.index.json"
    )


def _open_shards(folder: Path, index_name: str, opener: type[SafetensorsFile] | type[PickledFile]) -> Weights:
    weight_map = read_json(folder / index_name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index_name} has no weight_map of tensor names to files")
    shards: dict[str, WeightFile] = {}
    for shard in sorted(set(weight_map.values())):
        if shard in ("", "..") or Path(shard).name != shard:
            raise CheckpointError(f"{index_name} names a file outside the folder: {shard!r}")
        if not (folder / shard).is_file():
            raise CheckpointError(f"{shard} is missing in {folder}, though {index_name} names it")
        shards[shard] = opener(folder / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard].shapes:
            raise CheckpointError(f"{shard} lacks the tensor {name}, though {index_name} says it is there")
    return Weights({name: shards[shard] for name, shard in weight_map.items()})


def _is_zip(path: Path) -> bool:
    """Old torch files are plain pickles, which cannot be memory-mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
