"""One vector for a whole text, from its hidden rows: pooled as the folder says, then through its Dense layers.

Scaling to unit length is left to the caller, who may be asked not to.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from trefoil_kernels.gated_act import ACTIVATIONS
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.layers import Linear
from trefoil_models.model_folder import read_json
from trefoil_models.sentence_files import SentenceFiles
from trefoil_models.weight_files import open_weights

DENSE_ACTIVATIONS = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
"""torch's class names, as sentence-transformers writes them; Identity is none of them."""


def _weighted_mean(rows_RM: Tensor) -> Tensor:
    """Later rows weigh more (Muennighoff, arXiv 2202.08904, eq. 2)."""
    weights_R1 = torch.arange(1, len(rows_RM) + 1, device=rows_RM.device, dtype=rows_RM.dtype)[:, None]
    return (rows_RM * weights_R1).sum(0) / weights_R1.sum()


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda rows_RM: rows_RM[0],
    "mean": lambda rows_RM: rows_RM.mean(0),
    "max": lambda rows_RM: rows_RM.amax(0),
    "mean_sqrt_len": lambda rows_RM: rows_RM.sum(0) / len(rows_RM) ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda rows_RM: rows_RM[-1],
}


class Dense(nn.Module):
    """act(linear(x)), from a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        keys = Keys(read_json(folder / "config.json"), file=f"{folder.name}/config.json")
        name = keys.text("activation_function", "Tanh").rpartition(".")[2]
        if name not in DENSE_ACTIVATIONS and name != "Identity":
            raise CheckpointError(f"{keys.file}: activation_function {name} is not implemented")
        self.activate = ACTIVATIONS[DENSE_ACTIVATIONS[name]] if name != "Identity" else nn.Identity()
        self.linear = Linear(keys.size("in_features"), keys.size("out_features"), bias=keys.flag("bias", True))
        weights = open_weights(folder)
        for own, parameter in self.linear.named_parameters():
            stored = f"linear.{own}"
            if stored not in weights.files or weights.shape(stored) != tuple(parameter.shape):
                raise CheckpointError(f"{folder.name}: tensor {stored} is missing or of another shape than its config")
            parameter.data = weights.read(stored).float()

    def forward(self, x_M: Tensor) -> Tensor:
        return self.activate(self.linear(x_M))


class Pooling(nn.Module):
    """A text's hidden rows to its vector, in float32; where the folder is silent by their mean, a decoder's last."""

    def __init__(self, files: SentenceFiles, *, kind: str) -> None:
        super().__init__()
        self.modes = files.modes or (("lasttoken",) if kind == "decoder" else ("mean",))
        self.dense = nn.Sequential(*(Dense(folder) for folder in files.dense))

    def forward(self, rows_RM: Tensor) -> Tensor:
        rows_RM = rows_RM.float()
        return self.dense(torch.cat([POOLS[mode](rows_RM) for mode in self.modes]))
