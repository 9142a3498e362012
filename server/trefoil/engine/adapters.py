"""LoRA adapters of a running engine: each in a slot of its own, any mix of them with the base in one step.

The layers that adapters change are wrapped when the first adapter that needs them comes; an engine without adapters
computes as if there were no such thing.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trefoil_kernels.lora_matmul import slots_of
from trefoil_models.adapter_files import read_adapter
from trefoil_models.layers import LowRanks, Wrapped
from trefoil_models.lora import LowRank
from trefoil_models.slices import Slices, placed

BASE = -1
"""The slot of rows that no adapter changes."""


@dataclass(slots=True)
class Choice:
    """The slot of every row of the pass under way; None: no row has one."""

    slots_T: Tensor | None = None


class SlottedLinear(Wrapped):
    """A linear layer and every adapter's change of it, slot by slot."""

    def __init__(self, base: nn.Module, low: LowRank, choice: Choice) -> None:
        super().__init__(base)
        self._choice = choice
        self._like = low
        self.stack({}, 1)

    def changed(self, x_TM: Tensor, y_TF: Tensor, at_T: Tensor | None) -> Tensor:
        slots_T = self._choice.slots_T
        if slots_T is None:
            return y_TF
        return self._slots.add(y_TF, x_TM, slots_T if at_T is None else slots_T[at_T])

    def low_ranks(self) -> LowRanks | None:
        slots_T = self._choice.slots_T
        if slots_T is None:
            return None
        return LowRanks(
            *self._matrices, slots_T[:, None] == torch.arange(len(self._matrices[0]), device=slots_T.device)
        )

    def stack(self, lows: Mapping[int, LowRank], num_slots: int) -> None:
        """Take these adapters; a slot without one changes nothing."""
        rank = max((low.down_RM.shape[0] for low in lows.values()), default=1)
        down_SRM = self._like.down_RM.new_zeros(num_slots, rank, self._like.down_RM.shape[1])
        up_SRO = self._like.up_OR.new_zeros(num_slots, rank, self._like.up_OR.shape[0])
        for slot, low in lows.items():
            down_SRM[slot, : low.down_RM.shape[0]] = low.down_RM
            up_SRO[slot, : low.down_RM.shape[0]] = (low.up_OR * low.scale).T
        self._matrices = down_SRM, up_SRO
        self._slots = slots_of(down_SRM, up_SRO)


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter in its slot. The serial tells it from others that had the name, or the slot, before."""

    slot: int
    serial: int


class Adapters:
    """The adapters of one model by name."""

    def __init__(self, model: Any, slices: Slices | None = None) -> None:
        self._model, self._slices = model, slices
        self._choice = Choice()
        self._layers: dict[str, SlottedLinear] = {}
        self._lows: dict[int, dict[str, LowRank]] = {}
        self._loaded: dict[str, Loaded] = {}
        self._refused: dict[str, str] = {}
        self.num_loads = 0
        """Grows whenever what the layers hold is another than before."""
        parameter = next(model.parameters())
        self._dtype, self._device = parameter.dtype, parameter.device

    def load(self, name: str, folder: Path, *, busy: Collection[int]) -> None:
        """Put an adapter into a slot that no sequence still uses. Raises CheckpointError."""
        self.unload(name)
        lows = {path: self._placed(low) for path, low in self._read(folder).items()}
        taken = {loaded.slot for loaded in self._loaded.values()} | set(busy)
        slot = next(n for n in range(len(taken) + 1) if n not in taken)
        self._lows = {n: others for n, others in self._lows.items() if n in taken} | {slot: lows}
        for path, low in lows.items():
            self._wrap(path, low)
        for path, layer in self._layers.items():
            own = {n: others[path] for n, others in self._lows.items() if path in others}
            layer.stack(own, max(self._lows) + 1)
        self.num_loads += 1
        self._loaded[name] = Loaded(slot, self.num_loads)

    def refuse(self, name: str, why: str) -> None:
        """Remember why an adapter cannot be had, for those who ask for it."""
        self._refused[name] = why

    def unload(self, name: str) -> None:
        """Forget a name; sequences that run with it still find its slot as it was."""
        self._loaded.pop(name, None)
        self._refused.pop(name, None)

    def find(self, name: str) -> Loaded | str:
        """The adapter, or why it is not here."""
        return self._loaded.get(name) or self._refused.get(name, f"the adapter {name} is not loaded")

    def chosen(self, slots: list[int]) -> AbstractContextManager[None]:
        """While the model computes these rows, each has its slot."""
        has_any = any(slot != BASE for slot in slots)
        return self.chosen_in(torch.tensor(slots, device=self._device) if has_any else None)

    @contextmanager
    def chosen_in(self, slots_T: Tensor | None) -> Iterator[None]:
        """The same, with the slots in a tensor; None: no row has one."""
        self._choice.slots_T = slots_T
        try:
            yield
        finally:
            self._choice.slots_T = None

    def _read(self, folder: Path) -> Mapping[str, LowRank]:
        """An adapter's matrices by the names of our layers; of a rank of several, what it has of them."""
        if self._slices is None:
            return read_adapter(folder, self._model).lows
        lows = read_adapter(folder, self._slices.whole).lows
        return {placed(self._model, path): self._slices.low(path, low) for path, low in lows.items()}

    def _wrap(self, path: str, low: LowRank) -> None:
        if path in self._layers:
            return
        self._layers[path] = SlottedLinear(self._model.get_submodule(path), low, self._choice)
        parent, _, leaf = path.rpartition(".")
        setattr(self._model.get_submodule(parent), leaf, self._layers[path])

    def _placed(self, low: LowRank) -> LowRank:
        down_RM, up_OR = (matrix.to(self._device, self._dtype) for matrix in (low.down_RM, low.up_OR))
        return LowRank(down_RM, up_OR, low.scale)
