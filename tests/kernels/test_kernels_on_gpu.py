"""The kernels on a GPU: cases of the interpreter again, larger and in bfloat16.

Attention without a bias, RMSNorm, rotary, page writes and log-probabilities have theirs beside their other tests, whose
doors lead to the kernels there.
"""

import pytest
import torch
from torch import Tensor

from closeness import assert_agrees, assert_close
from trefoil_kernels import gated_act, grouped_linear, layer_norm, linear, packed_attention, rms_norm, rotary, sample
from trefoil_kernels.bias import Alibi, RelativeBias
from trefoil_kernels.float8 import has_float8, rounded_rows, to_float8
from trefoil_kernels.float8_linear import Float8Weight
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import new_pages, rotary_page_write

pytestmark = pytest.mark.gpu


def draw(device: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, torch.bfloat16).requires_grad_()


@pytest.mark.parametrize("width", [64, 896, 4096, 8192])
def test_norms(width: int, gpu: str) -> None:
    x, residual, weight_M, bias_M = draw(gpu, 777, width), draw(gpu, 777, width), draw(gpu, width), draw(gpu, width)
    assert_agrees(lambda *of: rms_norm.rms_norm(*of, 1e-5), lambda *of: rms_norm.reference(*of, 1e-5), [x, weight_M])
    normed, summed = rms_norm.add_rms_norm(x, residual, weight_M, 1e-5)
    assert torch.equal(summed, x + residual)
    assert_close(normed, rms_norm.reference(summed, weight_M, 1e-5))
    layer, plain = (lambda *of, op=op: op(*of, 1e-5) for op in (layer_norm.layer_norm, layer_norm.reference))
    assert_agrees(layer, plain, [x, weight_M, bias_M])


@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 14336), (1001, 896)], ids=str)
def test_one_row_product(shape: tuple[int, int], gpu: str) -> None:
    x_TM, weight_FM, bias_F = (draw(gpu, *size).detach() for size in ((1, shape[1]), shape, (shape[0],)))
    wanted = x_TM.double() @ weight_FM.double().T + bias_F.double()
    assert_close(linear.linear(x_TM, weight_FM, bias_F), wanted.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "shape"), [(7, (8, 1536, 2048)), (40, (60, 333, 896)), (600, (8, 1024, 1500))], ids=str
)
def test_grouped_product(rows: int, shape: tuple[int, int, int], dtype: torch.dtype, gpu: str) -> None:
    """One by one, in low tiles and in high ones."""
    x_RM, weights_EFM = (draw(gpu, *size).detach().to(dtype) for size in ((rows, shape[2]), shape))
    choice_P = torch.rand(rows, shape[0], device=gpu).argsort(1)[:, :4].flatten()
    ordered = grouped_linear.in_order(choice_P, shape[0], dtype)
    wanted = grouped_linear.reference(x_RM.double(), weights_EFM.double(), choice_P)
    assert_close(grouped_linear.grouped_linear(x_RM, weights_EFM, choice_P, ordered), wanted.to(dtype))


@pytest.mark.parametrize("rows", [1, 2, 16, 333])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 14336), (1008, 896), (1001, 900)], ids=str)
def test_product_with_8_bit_floats(rows: int, shape: tuple[int, int], gpu: str) -> None:
    """One row as it is, more rows rounded, and sizes that the scaled product does not take."""
    x_TM, weight_FM, bias_F = (draw(gpu, *size).detach() for size in ((rows, shape[1]), shape, (shape[0],)))
    values = to_float8(weight_FM)
    is_rounded = rows > 1 and has_float8() and shape[1] % 16 == 0
    met_TM = (to_float8(x_TM).restored(torch.float64)) if is_rounded else x_TM.double()
    wanted = (met_TM @ values.restored(torch.float64).T).to(torch.bfloat16)
    assert_close(Float8Weight(values, None).times(x_TM), wanted)
    assert_close(Float8Weight(values, bias_F).times(x_TM), wanted + bias_F)


def test_rows_rounded_to_8_bits(gpu: str) -> None:
    if not has_float8():
        pytest.skip("this device has no 8-bit floats")
    x_TM = draw(gpu, 777, 14400).detach()[:, 64:]
    x_TM[5] = 0
    rounded, wanted = rounded_rows(x_TM), to_float8(x_TM)
    assert torch.equal(rounded.scales_F, wanted.scales_F)
    is_same = rounded.codes_FM.float() == wanted.codes_FM.float()
    assert is_same.float().mean() > 0.999  # a quotient's last bit may tip a tie


@pytest.mark.parametrize(
    ("rows", "shape"), [(7, (8, 1536, 2048)), (40, (60, 333, 896)), (600, (8, 1024, 1500))], ids=str
)
def test_grouped_product_with_8_bit_floats(rows: int, shape: tuple[int, int, int], gpu: str) -> None:
    x_RM, values = draw(gpu, rows, shape[2]).detach(), to_float8(draw(gpu, *shape).detach().flatten(0, 1))
    choice_P = torch.rand(rows, shape[0], device=gpu).argsort(1)[:, :4].flatten()
    ordered = grouped_linear.in_order(choice_P, shape[0], torch.bfloat16)
    codes_EFM, scales_EF = values.codes_FM.view(shape), values.scales_F.view(shape[:2])
    wanted = grouped_linear.reference(x_RM.double(), values.restored(torch.float64).view(shape), choice_P)
    got_PF = grouped_linear.grouped_linear(x_RM, codes_EFM, choice_P, ordered, scales_EF)
    assert_close(got_PF, wanted.to(torch.bfloat16))


@pytest.mark.parametrize("activation", gated_act.ACTIVATIONS)
def test_gated_act(activation: str, gpu: str) -> None:
    kernel, plain = (lambda *of, op=op: op(*of, activation) for op in (gated_act.gated_act, gated_act.reference))
    assert_agrees(kernel, plain, [draw(gpu, 777, 11008), draw(gpu, 777, 11008)])


@pytest.mark.parametrize("D", [60, 64, 128])
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.FULL], ids=str)
@pytest.mark.parametrize("kind", ["relative", "alibi"])
def test_packed_attention_with_a_bias(D: int, mask: Mask, kind: str, gpu: str) -> None:
    packing, table_BH = Packing((5, 1111, 0, 170)), draw(gpu, 32, 4)
    alibi = Alibi(torch.rand(4, device=gpu))

    def run(op: object) -> object:
        def biased(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
            relative = RelativeBias(table, 128, is_bidirectional=not mask.is_causal)
            bias = alibi if kind == "alibi" else relative
            out = op(q, k, v, packing, mask=mask, scale=D**-0.5, bias=bias)
            return out + 0 * table.sum().to(out.dtype)

        return biased

    inputs = [*(draw(gpu, 1286, heads, D) for heads in (4, 2, 2)), table_BH]
    assert_agrees(run(packed_attention.packed_attention), run(packed_attention.reference), inputs)


def test_keys_of_another_packing(gpu: str) -> None:
    packing, keys = Packing((100, 1, 777)), Packing((333, 2, 1111))
    kernel, plain = (
        lambda *of, op=op: op(*of, packing, mask=Mask.FULL, scale=0.1, keys=keys)
        for op in (packed_attention.packed_attention, packed_attention.reference)
    )
    assert_agrees(kernel, plain, [draw(gpu, 878, 8, 128), draw(gpu, 1446, 2, 128), draw(gpu, 1446, 2, 128)])


@pytest.mark.parametrize("run", [64, 32, 1])
def test_turned_keys_go_to_their_slots(run: int, gpu: str) -> None:
    pages = new_pages(64, 16, 8, 128, dtype=torch.bfloat16, device=torch.device(gpu))
    slots_T = torch.randperm(1024, device=gpu)[:777]
    angles_TR = torch.arange(777, device=gpu)[:, None] * 10000.0 ** -(torch.arange(64, device=gpu) / 64)
    turn = rotary.Turn(angles_TR.cos(), angles_TR.sin(), run)
    q_THD, k_TGD, v_TGD = (draw(gpu, 777, heads, 128).detach() for heads in (32, 8, 8))
    turned_THD = rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    assert_close(turned_THD, rotary.reference(q_THD, turn))
    assert_close(pages.k_PSGD.flatten(0, 1)[slots_T], rotary.reference(k_TGD, turn))
    assert torch.equal(pages.v_PSGD.flatten(0, 1)[slots_T], v_TGD)


@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), [(0, 0, 1, 0), (1, 0, 1, 0), (0.7, 50, 0.9, 0.01)])
def test_sample(temperature: float, top_k: int, top_p: float, min_p: float, gpu: str) -> None:
    logits_NV = 3 * draw(gpu, 99, 128256).detach().float() + torch.rand(99, 128256, device=gpu)  # no two alike
    columns = [torch.full((99,), float(x), device=gpu) for x in (temperature, top_k, top_p, min_p)]
    columns = [columns[0], columns[1].int(), *columns[2:], torch.rand(99, device=gpu)]
    same = sample.sample(logits_NV, *columns) == sample.reference(logits_NV, *columns)
    assert same.float().mean() > 0.97  # float32 sums of 128,256 weights may land beside the reference's
