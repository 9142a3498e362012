"""A feed-forward of many experts, of which each row meets a few (Shazeer et al., arXiv 1701.06538), and maybe one that
all rows share.

Modules bear the names that files have: every expert is a feed-forward of its own.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_models.config_keys import CheckpointError, Keys
from trefoil_models.layers import GatedMLP, Linear
from trefoil_models.routing import Route, Routing

MOST_EXPERTS = 4096
"""Published models have up to 512; what loops over experts must end."""


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """A layer's experts and the rule that chooses among them.

    `names` are what files call an expert's gate, up and down; `shared` is the shared expert's name there, and
    `shared_inner` its width, 0 where there is none.
    """

    num_experts: int
    inner: int
    route: Route
    has_choice_bias: bool = False
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str = "shared_experts"
    shared_inner: int = 0
    has_shared_gate: bool = False


def read_choice(keys: Keys, name: str, *, num_experts: int | None = None, top_k: int | None = None) -> tuple[int, int]:
    """How many experts there are, by the key `name`, and how many a row meets; the arguments are the family's defaults.

    Raises CheckpointError.
    """
    num_experts, top_k = keys.size(name, num_experts, most=MOST_EXPERTS), keys.size("num_experts_per_tok", top_k)
    if top_k > num_experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {top_k} is more than {name} {num_experts}")
    return num_experts, top_k


class Router(nn.Module):
    """Rows to a logit for each expert, in float32 whatever the weights are."""

    e_score_correction_bias: Tensor | None

    def __init__(self, width: int, num_experts: int, *, has_choice_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        self.register_buffer("e_score_correction_bias", torch.zeros(num_experts) if has_choice_bias else None)

    def forward(self, x_TM: Tensor) -> Tensor:
        return F.linear(x_TM.float(), self.weight.float())


class Mixture(nn.Module):
    """Each row's few experts, weighed, and the shared one."""

    def __init__(self, width: int, shape: MixtureShape, *, activation: str) -> None:
        super().__init__()
        self.route = shape.route
        self.gate = Router(width, shape.num_experts, has_choice_bias=shape.has_choice_bias)
        self.experts = nn.ModuleList(
            GatedMLP(width, shape.inner, activation=activation, bias=False, names=shape.names)
            for _ in range(shape.num_experts)
        )
        self._shared = shape.shared if shape.shared_inner else None
        if self._shared:
            setattr(self, self._shared, GatedMLP(width, shape.shared_inner, activation=activation, bias=False))
        if shape.has_shared_gate:
            self.shared_expert_gate = Linear(width, 1, bias=False)
        self._has_shared_gate = shape.has_shared_gate

    def forward(self, x_TM: Tensor) -> Tensor:
        own_TM = self._routed(x_TM, self.route(self.gate(x_TM), self.gate.e_score_correction_bias))
        if self._shared is None:
            return own_TM
        shared_TM = getattr(self, self._shared)(x_TM)
        if self._has_shared_gate:
            shared_TM = self.shared_expert_gate(x_TM).sigmoid() * shared_TM
        return add(own_TM, shared_TM)

    def _routed(self, x_TM: Tensor, routing: Routing) -> Tensor:
        """One product an expert, over the rows that chose it."""
        num_rows, top_k = routing.experts_TK.shape
        experts_P = routing.experts_TK.flatten()
        order_P = experts_P.argsort(stable=True)
        rows_P = order_P // top_k
        counts = torch.bincount(experts_P, minlength=len(self.experts)).tolist()
        parts = zip(self.experts, torch.split(x_TM[rows_P], counts), torch.split(rows_P, counts), strict=True)
        sorted_PM = torch.cat([expert(part_RM, at_R) for expert, part_RM, at_R in parts if len(at_R)])
        own_PM = torch.empty_like(sorted_PM).index_copy(0, order_P, sorted_PM)
        own_TKM = own_PM.view(num_rows, top_k, -1)
        return (routing.weights_TK[:, None].to(own_TKM.dtype) @ own_TKM)[:, 0]
