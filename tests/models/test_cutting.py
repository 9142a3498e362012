"""Texts are cut as transformers cuts them, and of a long one no more is read than that takes."""

import threading
import time
from pathlib import Path

import pytest

import tiny_encoders
from trefoil_models.cutting import TooLittleRoomError, TooSparseError, windows
from trefoil_models.tokenizer import Tokenizer

LONG = "one two three four five six seven eight nine ten " * 9
CUTS = {"longest": "longest_first", "first": "only_first", "second": "only_second"}


@pytest.fixture(params=list(tiny_encoders.TOKENIZERS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_encoders.write_tokenizer(tmp_path, request.param)
    return tmp_path


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("lens", [(400, 30), (30, 400), (400, 300), (200, 201)], ids=str)
def test_the_end_is_cut_as_transformers_cuts_it(folder: Path, cut: str, lens: tuple[int, int]) -> None:
    first, second = (LONG[:length] for length in lens)
    try:
        wanted = tiny_encoders.words(folder)(first, second, truncation=CUTS[cut], max_length=40)["input_ids"]
    except Exception:
        wanted = None
    ours = Tokenizer.load(folder)
    if wanted is None or len(wanted) > 40:
        with pytest.raises(TooLittleRoomError):
            ours.encode_within(first, 40, pair=second, cut=cut)  # type: ignore[arg-type]
    else:
        assert ours.encode_within(first, 40, pair=second, cut=cut).ids == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [0, 5, 11])
def test_windows_are_those_of_transformers(folder: Path, stride: int) -> None:
    asked = {"truncation": True, "max_length": 20, "stride": stride, "return_overflowing_tokens": True}
    wanted = tiny_encoders.words(folder)(LONG, **asked)["input_ids"]
    whole = Tokenizer.load(folder).encode(LONG)
    assert [window.ids for window in windows(whole, 20, text=0, stride=stride)] == wanted


@pytest.mark.parametrize(
    "text", ["one two three " * 70_000, "你好" * 400_000, "a" * 1_000_000, "😀 " * 300_000], ids=len
)
def test_of_a_megabyte_only_the_beginning_is_read(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.load(folder)
    beginning = tokenizer.beginning(text, 60)
    assert tokenizer.encode(beginning).ids[:50] == tokenizer.encode(text[:20_000]).ids[:50]
    if " " in text:
        assert len(beginning) < 10_000


def test_a_word_of_megabytes_is_refused_after_some_and_holds_no_other_thread(tmp_path: Path) -> None:
    tiny_encoders.write_tokenizer(tmp_path, "wordpiece")
    tokenizer = Tokenizer.load(tmp_path)
    done = threading.Event()
    gaps: list[float] = []

    def count() -> None:
        last = time.monotonic()
        while not done.wait(0.001):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    counting = threading.Thread(target=count)
    counting.start()
    began = time.monotonic()
    with pytest.raises(TooSparseError, match=r"^\d+ characters of a text hold 1 tokens"):
        tokenizer.encode_within("a" * 15_000_000, 60)
    took = time.monotonic() - began
    done.set()
    counting.join()
    assert max(gaps) < 0.5 * took
