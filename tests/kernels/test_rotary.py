"""Rotary positions turn heads as transformers does, in part of the head too."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers.models.glm import modeling_glm as glm
from transformers.models.llama import modeling_llama as llama

from closeness import assert_close
from trefoil_kernels.rotary import Turn, angles, reference_angles, rotary


def tables(T: int, R: int, device: str = "cpu") -> Turn:
    angles_TR = torch.arange(3, 3 + T)[:, None] * 10000.0 ** -(torch.arange(R // 2) / (R // 2))
    return Turn(angles_TR.cos().to(device), angles_TR.sin().to(device), angles_TR.shape[1])


def published(
    x_THD: Tensor, turn: Turn, apply: Callable[..., tuple[Tensor, Tensor]] = llama.apply_rotary_pos_emb
) -> Tensor:
    """transformers' own, in float32."""
    cos, sin = (torch.cat([x, x], -1)[None] for x in (turn.cos_TR, turn.sin_TR))
    turned, _ = apply(x_THD.float()[None], x_THD.float()[None], cos, sin, unsqueeze_dim=2)
    return turned[0].to(x_THD.dtype)


@pytest.mark.parametrize("T", [1, 63])
@pytest.mark.parametrize("D", [2, 8, 60, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotary_matches_transformers(T: int, D: int, dtype: torch.dtype) -> None:
    x_THD = torch.randn(T, 3, D).to(dtype)
    assert_close(rotary(x_THD, tables(T, D)), published(x_THD, tables(T, D)))


def test_rotary_leaves_the_rest_of_a_head_alone() -> None:
    x_THD, turn = torch.randn(5, 3, 12), tables(5, 8)
    turned_THD = rotary(x_THD, turn)
    assert torch.equal(turned_THD[..., 8:], x_THD[..., 8:])
    assert_close(turned_THD[..., :8], published(x_THD[..., :8], turn))


def test_rotary_gradients_turn_back() -> None:
    x_THD, turn = torch.randn(5, 3, 8, requires_grad=True), tables(5, 8)
    grad_THD = torch.randn(5, 3, 8)
    (actual,) = torch.autograd.grad(rotary(x_THD, turn), x_THD, grad_THD)
    assert_close(actual, rotary(grad_THD, turn.back))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("D", "R"), [(128, 64), (60, 30), (8, 8)])
def test_neighbours_turn_as_in_glm(D: int, R: int, dtype: torch.dtype) -> None:
    x_THD, turn = torch.randn(7, 3, D).to(dtype), replace(tables(7, R), run=1)
    assert_close(rotary(x_THD, turn), published(x_THD, turn, glm.apply_rotary_pos_emb))


def test_several_runs_are_half_layouts_side_by_side() -> None:
    x_THD, one, other = torch.randn(5, 3, 20), tables(5, 8), tables(5, 8).back
    both = Turn(*(torch.cat(pair, 1) for pair in ((one.cos_TR, other.cos_TR), (one.sin_TR, other.sin_TR))), run=4)
    parts = rotary(x_THD[..., :8], one), rotary(x_THD[..., 8:16], other), x_THD[..., 16:]
    assert_close(rotary(x_THD, both), torch.cat(parts, -1))


@pytest.mark.gpu
def test_rotary_matches_transformers_on_gpu(gpu: str) -> None:
    x_THD = torch.randn(777, 8, 128, device=gpu, dtype=torch.bfloat16)
    assert_close(rotary(x_THD, tables(777, 128, gpu)), published(x_THD, tables(777, 128, gpu)))


def test_angles_are_torchs_to_the_last_digits_far_out_too() -> None:
    positions_T, frequencies_R = torch.tensor([0, 1, 777, 131071]), 1e4 ** -(torch.arange(0, 1, 1 / 33))
    for own, right in zip(
        angles(positions_T, frequencies_R, 1.5), reference_angles(positions_T, frequencies_R, 1.5), strict=True
    ):
        torch.testing.assert_close(own, right, rtol=0, atol=5e-7)
