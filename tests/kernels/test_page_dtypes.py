"""Pages of another dtype than rows: what is written is rounded once, what is read is that very number."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from paged_world import BATCHES, draw
from trefoil_kernels.cpu import library
from trefoil_kernels.cpu.attention import Keys
from trefoil_kernels.masks import Mask
from trefoil_kernels.page_write import Pages, as_bytes, copy_pages, kept, new_pages, page_write, rotary_page_write
from trefoil_kernels.page_write import reference as written_by_torch
from trefoil_kernels.paged_attention import paged_attention, reference
from trefoil_kernels.rotary import Turn, rotary

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SMALL = (*FLOAT8, torch.float16)
PAIRS = [
    (dtype, page_dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for page_dtype in (torch.float32, torch.bfloat16, *SMALL)
    if dtype != page_dtype
]
pairs = pytest.mark.parametrize(("dtype", "page_dtype"), PAIRS, ids=str)


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "native", lambda: None)


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit, all NaN being one."""
    return a.dtype == b.dtype and bool(((a == b) & (a.signbit() == b.signbit()) | a.isnan() & b.isnan()).all())


def every_code(dtype: torch.dtype) -> Tensor:
    codes = torch.arange(2 ** (8 * dtype.itemsize))
    return codes.to(torch.uint8).view(dtype) if dtype.itemsize == 1 else codes.to(torch.uint16).view(dtype)


def written(rows_TD: Tensor, page_dtype: torch.dtype) -> Tensor:
    """What pages hold after these rows went there, one a slot."""
    num_rows, width = rows_TD.shape
    pages = new_pages(1, num_rows, 1, width, dtype=page_dtype, device=torch.device("cpu"))
    page_write(pages, rows_TD[:, None], rows_TD[:, None], torch.arange(num_rows))
    assert torch.equal(as_bytes(pages.k_PSGD), as_bytes(pages.v_PSGD))
    return pages.k_PSGD[0, :, 0]


def read(pages: Pages, dtype: torch.dtype) -> Tensor:
    """What attention finds in each slot: a row that sees one key gets its value."""
    table, lens = torch.arange(len(pages.k_PSGD))[:, None], torch.ones(len(pages.k_PSGD), dtype=torch.int64)
    keys = Keys(pages.k_PSGD, pages.v_PSGD, lens, table, page_size=1)
    native = library.native()
    assert native is not None
    q_THD = torch.zeros(len(lens), 1, pages.k_PSGD.shape[3], dtype=dtype)
    starts = torch.arange(len(lens) + 1, dtype=torch.int32)
    return native.attention.over(q_THD, keys, starts, mask=Mask.FULL, scale=1.0)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("page_dtype", SMALL, ids=str)
def test_every_code_is_read_as_torch_reads_it(page_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Finite ones: no others are found where a softmax has been."""
    codes = every_code(page_dtype)
    codes = codes[codes.float().isfinite()]
    for width in (9, 32):  # less than a vector, and two
        v_PSGD = codes[: len(codes) // width * width].view(-1, 1, 1, width)
        found = read(Pages(torch.zeros(v_PSGD.shape).to(page_dtype), v_PSGD), dtype)
        assert torch.equal(found, v_PSGD[:, 0, 0].to(dtype))  # -0 is 0: it was added to


@pytest.mark.parametrize("page_dtype", SMALL, ids=str)
def test_what_is_no_number_stays_none(page_dtype: torch.dtype) -> None:
    codes = every_code(page_dtype)
    codes = codes[~codes.float().isfinite()]
    for width in (1, 32):
        v_PSGD = codes[:, None].expand(-1, width).contiguous()[:, None, None]
        found = read(Pages(torch.zeros(v_PSGD.shape).to(page_dtype), v_PSGD), torch.float32)
        assert not found.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("page_dtype", SMALL, ids=str)
def test_numbers_are_rounded_to_the_nearest(page_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """All numbers, halfway between two, what lies beside that, and what is too large."""
    codes = every_code(page_dtype).float()
    codes = codes[codes.isfinite()].sort().values
    middles = (codes[1:] + codes[:-1]) / 2
    beside = [torch.nextafter(middles, torch.tensor(side * torch.inf)) for side in (1, -1)]
    ends = torch.tensor([1e30, -1e30, torch.inf, -torch.inf, torch.nan, 1e-30, -1e-30])
    x = torch.cat([codes, middles, *beside, ends]).to(dtype)
    x_TD = x[: len(x) // 7 * 7].view(-1, 7) if len(x) > 10000 else x.view(1, -1)
    found, most = written(x_TD, page_dtype), torch.finfo(page_dtype).max
    assert same(found.float(), x_TD.float().clamp(-most, most).to(page_dtype).float())
    assert found[x_TD.isfinite()].float().isfinite().all(), "a finite number became none"


@pairs
def test_native_and_torch_write_the_same(dtype: torch.dtype, page_dtype: torch.dtype) -> None:
    rows_TGD = (100 * torch.randn(5, 2, 20)).to(dtype)
    slots_T = torch.tensor([19, 0, 6, 5, 11])
    own, right = (new_pages(5, 4, 2, 20, dtype=page_dtype, device=torch.device("cpu")) for _ in range(2))
    page_write(own, rows_TGD, -rows_TGD, slots_T)
    written_by_torch(right, rows_TGD, -rows_TGD, slots_T)
    for x_PSGD, wanted_PSGD in zip(own.tensors, right.tensors, strict=True):
        assert same(x_PSGD.float(), wanted_PSGD.float())


@pairs
@pytest.mark.parametrize("run", [4, 1])
def test_keys_are_turned_before_they_are_rounded(dtype: torch.dtype, page_dtype: torch.dtype, run: int) -> None:
    pages = new_pages(2, 4, 2, 20, dtype=page_dtype, device=torch.device("cpu"))
    q_THD, k_TGD, v_TGD = torch.randn(3, 8, 20).to(dtype).split((4, 2, 2), 1)
    turn, slots_T = Turn(torch.randn(3, 4), torch.randn(3, 4), run), torch.tensor([7, 0, 2])
    turned_THD = rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    assert torch.equal(turned_THD, rotary(q_THD, turn))
    for x_PSGD, rows_TGD in ((pages.k_PSGD, rotary(k_TGD, turn)), (pages.v_PSGD, v_TGD)):
        assert same(x_PSGD.flatten(0, 1)[slots_T].float(), kept(rows_TGD, page_dtype).float())


@pairs
@pytest.mark.parametrize("batch", ["mixed", "chunks"])
@pytest.mark.parametrize(("H", "G", "D"), [(4, 2, 24), (8, 1, 70)], ids=str)
def test_attention_is_that_of_the_rounded_cache(
    dtype: torch.dtype, page_dtype: torch.dtype, batch: str, H: int, G: int, D: int
) -> None:
    rows = BATCHES[batch] + [(40, 600), (1, 1100)]  # spans of keys, and keys split among threads
    world = draw(rows, H, G, D, dtype, page_dtype=page_dtype)
    args = world.q_THD, world.pages, world.table, world.packing
    for mask in (Mask.CAUSAL, Mask(window=3), Mask.FULL):
        assert_close(paged_attention(*args, mask=mask, scale=0.2), reference(*args, mask=mask, scale=0.2))


@pairs
@pytest.mark.parametrize("batch", ["one each", "mixed"])
@pytest.mark.usefixtures("torch_alone")
def test_torch_alone_reads_the_same(dtype: torch.dtype, page_dtype: torch.dtype, batch: str) -> None:
    world = draw(BATCHES[batch], 4, 2, 24, dtype, page_dtype=page_dtype)
    args = world.q_THD, world.pages, world.table, world.packing
    assert_close(paged_attention(*args, mask=Mask.CAUSAL, scale=0.2), reference(*args, mask=Mask.CAUSAL, scale=0.2))


@pytest.mark.parametrize("page_dtype", FLOAT8, ids=str)
def test_latent_rows_are_both_key_and_value(page_dtype: torch.dtype) -> None:
    world = draw(BATCHES["mixed"], 8, 1, 576, torch.float32, page_dtype=page_dtype)
    pages = Pages(world.pages.k_PSGD, world.pages.k_PSGD)
    args = world.q_THD, pages, world.table, world.packing
    assert_close(paged_attention(*args, mask=Mask.CAUSAL, scale=0.05), reference(*args, mask=Mask.CAUSAL, scale=0.05))


@pytest.mark.parametrize("page_dtype", SMALL, ids=str)
def test_pages_are_copied_whole(page_dtype: torch.dtype) -> None:
    k_PSGD, v_PSGD = torch.randn(2, 5, 4, 2, 8).to(page_dtype)
    pages = Pages(k_PSGD.clone(), v_PSGD.clone())
    copy_pages(pages, torch.tensor([0, 0, 3]), torch.tensor([4, 1, 2]))
    for now, before in ((pages.k_PSGD, k_PSGD), (pages.v_PSGD, v_PSGD)):
        assert torch.equal(now.float(), before.float()[[0, 0, 3, 3, 0]])


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [[(1, 4000), (1, 1), (1, 777)], [(512, 512), (1, 90), (100, 1000)]], ids=str)
@pytest.mark.parametrize(("H", "G", "D"), [(8, 2, 128), (4, 4, 64), (71, 1, 80)], ids=str)
@pytest.mark.parametrize("page_dtype", [*FLOAT8, torch.float16, torch.float32], ids=str)
def test_attention_is_that_of_the_rounded_cache_on_gpu(
    batch: list[tuple[int, int]], H: int, G: int, D: int, page_dtype: torch.dtype, gpu: str
) -> None:
    world = draw(batch, H, G, D, torch.bfloat16, gpu, page_dtype=page_dtype)
    args = world.q_THD, world.pages, world.table, world.packing
    for mask in (Mask.CAUSAL, Mask(window=300), Mask.FULL):
        assert_close(paged_attention(*args, mask=mask, scale=0.2), reference(*args, mask=mask, scale=0.2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("page_dtype", SMALL, ids=str)
def test_rows_are_rounded_to_the_nearest_on_gpu(page_dtype: torch.dtype, dtype: torch.dtype, gpu: str) -> None:
    pages = new_pages(64, 16, 8, 128, dtype=page_dtype, device=torch.device(gpu))
    q_THD, k_TGD, v_TGD = (300 * torch.randn(777, 48, 128, device=gpu)).to(dtype).split((32, 8, 8), 1)
    v_TGD[0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30], device=gpu).repeat(32)
    slots_T = torch.randperm(1024, device=gpu)[:777]
    page_write(pages, k_TGD, v_TGD, slots_T)
    for x_PSGD, rows_TGD in ((pages.k_PSGD, k_TGD), (pages.v_PSGD, v_TGD)):
        assert same(x_PSGD.float().flatten(0, 1)[slots_T], kept(rows_TGD, page_dtype).float())
    angles_TR = torch.arange(777, device=gpu)[:, None] * 10000.0 ** -(torch.arange(64, device=gpu) / 64)
    turn = Turn(angles_TR.cos(), angles_TR.sin(), 64)
    turned_THD = rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    assert_close(turned_THD, rotary(q_THD, turn))
    assert same(pages.k_PSGD.float().flatten(0, 1)[slots_T], kept(rotary(k_TGD, turn), page_dtype).float())
    assert same(pages.v_PSGD.float().flatten(0, 1)[slots_T], kept(v_TGD, page_dtype).float())
    before = pages.k_PSGD.float()
    copy_pages(pages, torch.tensor([3, 5], device=gpu), torch.tensor([4, 6], device=gpu))
    assert same(pages.k_PSGD.float()[[4, 6]], before[[3, 5]])
