"""The native library is built once and kept; where it cannot be, torch serves and one line says why."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from trefoil_kernels.cpu import build, library
from trefoil_kernels.cpu.build import NativeUnavailable, Variant, cache_folders, choose_variant, cpu_flags
from trefoil_kernels.linear import linear

AVX2 = next(variant for variant in build.VARIANTS if variant.name == "avx2")


@pytest.fixture
def fresh_question() -> Iterator[None]:
    """The process has not asked for its library yet."""
    library.native.cache_clear()
    yield
    library.native.cache_clear()


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_this_machine_has_its_library() -> None:
    found = library.native()
    assert found is not None, "these tests would show nothing: no compiler, or an old processor"
    assert found.variant == choose_variant(cpu_flags()).name


def test_the_best_instruction_set_that_the_processor_has_is_chosen() -> None:
    everything = frozenset.union(*(variant.needs for variant in build.VARIANTS))
    assert choose_variant(everything).name == "avx512_vbmi"
    assert choose_variant(AVX2.needs).name == "avx2"


def test_an_old_processor_is_told_to_use_torch() -> None:
    with pytest.raises(
        NativeUnavailable, match="none of the instruction sets avx512_vbmi, avx512_bf16, avx512, avx2, asimd"
    ):
        library.load(frozenset({"sse2"}), cache_folders())


def test_no_compiler_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match=r"no C compiler is installed \(no-such-cc\)"):
        library.load(cpu_flags(), [tmp_path], ["no-such-cc"])


def test_a_failing_compiler_is_quoted(tmp_path: Path) -> None:
    broken = program(tmp_path / "cc", "echo 'cc: disk on fire' >&2; exit 3")
    with pytest.raises(NativeUnavailable, match="status 3 and said: cc: disk on fire"):
        library.load(cpu_flags(), [tmp_path / "cache"], [broken])


def test_a_library_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / choose_variant(cpu_flags()).file_name).write_bytes(b"no library")
    with pytest.raises(NativeUnavailable, match="cannot be loaded"):
        library.load(cpu_flags(), [tmp_path])


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_and_the_library_built_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with capture_logs() as lines:
        found = library.load(cpu_flags(), [tmp_path / "file" / "cache"])
    assert [line["event"] for line in lines] == ["native_kernels_not_kept"]
    assert str(tmp_path) in lines[0]["why"]
    x_TM = torch.randn(2, 5)
    assert torch.allclose(found.products.plain(x_TM, x_TM), x_TM @ x_TM.T, atol=1e-5)


def test_a_kept_library_needs_no_compiler(tmp_path: Path) -> None:
    variant = choose_variant(cpu_flags())
    kept = next(folder for folder in cache_folders() if (folder / variant.file_name).is_file())
    assert library.load(cpu_flags(), [kept, tmp_path], ["no-such-cc"]).variant == variant.name
    assert not list(tmp_path.iterdir())


def test_another_text_or_instruction_set_is_another_file() -> None:
    assert (
        len({variant.file_name for variant in (*build.VARIANTS, Variant("avx2", AVX2.needs, ("-march=znver4",)))}) == 6
    )


def test_a_library_that_computes_wrong_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CHECK_BOUND", 0.0)
    with pytest.raises(NativeUnavailable, match="computes wrong numbers"):
        library.load(cpu_flags(), cache_folders())


def test_what_is_missing_is_said_once_and_torch_answers(fresh_question: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cpu_flags", frozenset)
    x_TM, weight_FM = torch.randn(2, 5), torch.randn(3, 5)
    with capture_logs() as lines:
        answers = [linear(x_TM, weight_FM) for _ in range(3)]
    assert all(torch.equal(answer, torch.nn.functional.linear(x_TM, weight_FM)) for answer in answers)
    assert [(line["event"], line["instead"]) for line in lines] == [("native_kernels_off", "torch")]
