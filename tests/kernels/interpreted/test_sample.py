"""The sampling kernel draws what the reference draws by sorting, row by row, whatever the rows beside it ask for."""

import pytest
import torch
from torch import Tensor

from trefoil_kernels import sample as kernel
from trefoil_kernels.sample import reference, sample

CASES = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "plain": (1.0, 0, 1.0, 0.0),
    "hot": (3.0, 0, 1.0, 0.0),
    "top-k": (1.0, 7, 1.0, 0.0),
    "top-1": (1.0, 1, 1.0, 0.0),
    "wider than the vocabulary": (1.0, 5000, 1.0, 0.0),
    "top-p": (0.7, 0, 0.8, 0.0),
    "a small top-p": (1.0, 0, 1e-6, 0.0),
    "min-p": (1.0, 0, 1.0, 0.05),
    "all three": (1.3, 20, 0.9, 0.01),
}


def parameters(case: tuple[float, int, float, float], num: int, seed: int = 0) -> list[Tensor]:
    temperature, top_k, top_p, min_p = case
    uniform_N = torch.rand(num, generator=torch.Generator().manual_seed(seed))
    return [
        torch.full((num,), temperature),
        torch.full((num,), top_k, dtype=torch.int32),
        torch.full((num,), top_p),
        torch.full((num,), min_p),
        uniform_N,
    ]


def logits(num: int, vocab: int) -> Tensor:
    return 3 * torch.randn(num, vocab, generator=torch.Generator().manual_seed(vocab))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sample_matches_reference(case: tuple[float, int, float, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "BLOCK", 128)
    args = logits(2, 200), *parameters(case, 2)
    assert torch.equal(sample(*args), reference(*args))


def test_rows_are_drawn_one_by_one() -> None:
    cases = [CASES[name] for name in ("greedy", "top-k", "plain")]
    columns = [torch.cat(same) for same in zip(*(parameters(case, 1, 5) for case in cases), strict=True)]
    x_NV = logits(len(cases), 70)
    together = sample(x_NV, *columns)
    alone = [sample(x_NV[n : n + 1], *(x[n : n + 1] for x in columns)) for n in range(len(cases))]
    assert torch.equal(together, torch.cat(alone))


def test_forbidden_ids_are_never_drawn() -> None:
    x_NV = logits(5, 33).index_fill(1, torch.arange(0, 33, 2), -torch.inf)
    assert (sample(x_NV, *parameters(CASES["hot"], 5)) % 2 == 1).all()
    uniform_N = torch.tensor([0.0, 1.0 - 2**-24])
    assert (sample(x_NV[:2], *parameters(CASES["plain"], 2)[:4], uniform_N) % 2 == 1).all()
