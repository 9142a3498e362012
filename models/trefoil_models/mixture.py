"""A feed-forward of many experts, of which each row meets a few (Shazeer et al., arXiv 1701.06538), and maybe one that
all rows share.

Modules bear the names that files have: every expert is a feed-forward of its own. On a GPU `lay_in_stacks` lets their
weights follow each other, and one product does for all; elsewhere, and where gradients are asked for or adapters change
an expert, each computes the rows that chose it.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trefoil_kernels.add import add
from trefoil_kernels.gated_act import gated_act
from trefoil_kernels.grouped_linear import Choice, grouped_linear, in_order
from trefoil_kernels.launch import runs_triton
from trefoil_models.config_keys import CheckpointError, Keys, divided
from trefoil_models.layers import (
    Float8Linear,
    GatedMLP,
    Linear,
    Wrapped,
    lay_float8_together,
    lay_one_after_another,
)
from trefoil_models.routing import Route, Routing

MOST_EXPERTS = 4096
"""Published models have up to 512; what loops over experts must end."""


@dataclass(frozen=True, slots=True)
class MixtureShape:
    """A layer's experts and the rule that chooses among them.

    `names` are what files call an expert's gate, up and down; `shared` is the shared expert's name there, and
    `shared_inner` its width, 0 where there is none. `balance` is how much an uneven choice adds to a loss in training.
    """

    num_experts: int
    inner: int
    route: Route
    has_choice_bias: bool = False
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    shared: str = "shared_experts"
    shared_inner: int = 0
    has_shared_gate: bool = False
    balance: float = 0.0

    def divided(self, ranks: int) -> "MixtureShape":
        """One rank's: every expert, each as much narrower. Raises Indivisible."""
        return replace(
            self,
            inner=divided("an expert's width", self.inner, ranks),
            shared_inner=divided("the shared expert's width", self.shared_inner, ranks),
        )


def read_choice(keys: Keys, name: str, *, num_experts: int | None = None, top_k: int | None = None) -> tuple[int, int]:
    """How many experts there are, by the key `name`, and how many a row meets; the arguments are the family's defaults.

    Raises CheckpointError.
    """
    num_experts, top_k = keys.size(name, num_experts, most=MOST_EXPERTS), keys.size("num_experts_per_tok", top_k)
    if top_k > num_experts:
        raise CheckpointError(f"config.json: num_experts_per_tok {top_k} is more than {name} {num_experts}")
    return num_experts, top_k


def read_balance(keys: Keys) -> float:
    """What the routers' auxiliary loss counts: nothing, as in transformers, unless the file asks for their logits.

    Raises CheckpointError.
    """
    return keys.number("router_aux_loss_coef", 0.001) if keys.flag("output_router_logits", False) else 0.0


@dataclass(frozen=True, slots=True)
class Stack:
    """Weights of all experts as one tensor, with a scale an output where they are 8-bit floats."""

    weights_EFM: Tensor
    scales_EF: Tensor | None = None

    @classmethod
    def of(cls, layers: list[nn.Module], num_experts: int) -> "Stack":
        """Lays them so, in that order."""
        narrow = [layer for layer in layers if isinstance(layer, Float8Linear)]
        if len(narrow) < len(layers):
            whole_FM = lay_one_after_another(layers, "weight")
            return cls(whole_FM.view(num_experts, -1, whole_FM.shape[1]))
        values = lay_float8_together(narrow).values
        return cls(
            values.codes_FM.view(num_experts, -1, values.codes_FM.shape[1]), values.scales_F.view(num_experts, -1)
        )

    def times(self, x_RM: Tensor, choice_P: Tensor, ordered: Choice | None) -> Tensor:
        """Each pair's product, [P, F]."""
        return grouped_linear(x_RM, self.weights_EFM, choice_P, ordered, self.scales_EF)


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
        self.route, self.balance = shape.route, shape.balance
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
        self._activation = activation
        self._stacks: tuple[Stack, Stack] | None = None

    @torch.no_grad()
    def lay_in_stacks(self) -> None:
        """Let the experts' gates and ups, and their downs, lie in one stack each; for inference on a GPU."""
        parts = self._parts
        gates_and_ups, downs = [part for own in parts for part in own[:2]], [own[2] for own in parts]
        self._stacks = Stack.of(gates_and_ups, len(parts)), Stack.of(downs, len(parts))

    def forward(self, x_TM: Tensor) -> Tensor:
        own_TM = self._routed(x_TM, self.route(self.gate(x_TM), self.gate.e_score_correction_bias))
        if self._shared is None:
            return own_TM
        shared_TM = getattr(self, self._shared)(x_TM)
        if self._has_shared_gate:
            shared_TM = self.shared_expert_gate(x_TM).sigmoid() * shared_TM
        return add(own_TM, shared_TM)

    def _routed(self, x_TM: Tensor, routing: Routing) -> Tensor:
        own_PM = self._by_stack(x_TM, routing) if self._is_stacked(x_TM) else self._by_expert(x_TM, routing)
        own_TKM = own_PM.view(*routing.weights_TK.shape, -1)
        return (routing.weights_TK[:, None].to(own_TKM.dtype) @ own_TKM)[:, 0]

    def _is_stacked(self, x_TM: Tensor) -> bool:
        """Can one product do for all? Then gradients and adapters are nobody's wish."""
        if self._stacks is None or torch.is_grad_enabled() or not runs_triton(x_TM):
            return False
        return not any(isinstance(part, Wrapped) for own in self._parts for part in own)

    @property
    def _parts(self) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
        """Every expert's projections as they are now."""
        return [cast(GatedMLP, expert).parts for expert in self.experts]

    def _by_stack(self, x_TM: Tensor, routing: Routing) -> Tensor:
        """Each row by each of its experts, [P, M], without asking the host."""
        assert self._stacks is not None
        (gate_up, down), choice_P = self._stacks, routing.experts_TK.flatten()
        ordered = in_order(choice_P, len(self.experts), x_TM.dtype)
        gate_PF, up_PF = gate_up.times(x_TM, choice_P, ordered).chunk(2, -1)
        return down.times(gated_act(gate_PF, up_PF, self._activation), choice_P, ordered)

    def _by_expert(self, x_TM: Tensor, routing: Routing) -> Tensor:
        """The same, one product an expert over the rows that chose it.

        In training an expert that no row chose computes none: its gradient is zero, and its optimizer's state moves on.
        """
        top_k = routing.experts_TK.shape[1]
        experts_P = routing.experts_TK.flatten()
        order_P = experts_P.argsort(stable=True)
        rows_P = order_P // top_k
        counts = torch.bincount(experts_P, minlength=len(self.experts)).tolist()
        parts = zip(self.experts, torch.split(x_TM[rows_P], counts), torch.split(rows_P, counts), strict=True)
        learns = torch.is_grad_enabled()
        sorted_PM = torch.cat([expert(part_RM, at_R) for expert, part_RM, at_R in parts if learns or len(at_R)])
        return torch.empty_like(sorted_PM).index_copy(0, order_P, sorted_PM)
