"""Compiles the C files beside it with the system's compiler, once for each instruction set and text, into a cache.

    python -m trefoil_kernels.cpu.build        every variant into the package's own folder, as an image does when made

A library's name carries a hash of the text and the flags, so a changed text is compiled again and an old library is
never taken for a new one. It is written under another name and renamed: two processes may build at once.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
SOURCES = (HERE / "lora.c", HERE / "native.c", HERE / "packed.c")
HEADERS = (HERE / "small_floats.h", HERE / "vectors.h")
PREBUILT = HERE / "built"
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-std=gnu11", "-fopenmp", "-fPIC")
TIME_LIMIT_S = 120.0
COMPILERS = ("gcc", "cc")


class NativeUnavailable(Exception):
    """No native library; one line says why."""


class NotKept(NativeUnavailable):
    """The library was built, and its folder cannot be written."""


@dataclass(frozen=True, slots=True)
class Variant:
    """An instruction set: the flags of /proc/cpuinfo that it needs, and what the compiler calls it."""

    name: str
    needs: frozenset[str]
    target: tuple[str, ...]

    @property
    def file_name(self) -> str:
        text = b"".join(path.read_bytes() for path in (*SOURCES, *HEADERS)) + " ".join((*FLAGS, *self.target)).encode()
        return f"trefoil-{self.name}-{hashlib.sha256(text).hexdigest()[:16]}.so"


AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "fma"})
AVX512_BF16 = AVX512 | {"avx512_bf16", "avx512_vnni"}
BF16_TARGET = ("-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni")
VARIANTS = (
    Variant("avx512_vbmi", AVX512_BF16 | {"avx512vbmi"}, (*BF16_TARGET, "-mavx512vbmi")),
    Variant("avx512_bf16", AVX512_BF16, BF16_TARGET),
    Variant("avx512", AVX512, ("-march=x86-64-v4",)),
    Variant("avx2", frozenset({"avx2", "fma", "bmi2", "f16c", "movbe"}), ("-march=x86-64-v3",)),
    Variant("asimd", frozenset({"asimd"}), ("-march=armv8-a",)),
)
"""The best first."""


def cpu_flags() -> frozenset[str]:
    """What this processor can do, by the kernel's names; nothing where the kernel does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split())


def choose_variant(flags: frozenset[str]) -> Variant:
    """The best that this processor runs. Raises NativeUnavailable on an old one."""
    for variant in VARIANTS:
        if variant.needs <= flags:
            return variant
    raise NativeUnavailable("this processor has none of the instruction sets " + ", ".join(v.name for v in VARIANTS))


def find_compiler(names: Sequence[str] = COMPILERS) -> str:
    """The first of these programs that is installed. Raises NativeUnavailable."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise NativeUnavailable(f"no C compiler is installed ({', '.join(names)})")


def cache_folders() -> list[Path]:
    """Where libraries are looked for and kept: what came with the package, then the user's own."""
    return [PREBUILT, Path.home() / ".cache" / "trefoil" / "native"]


def find_or_build(variant: Variant, folders: Sequence[Path], compilers: Sequence[str] = COMPILERS) -> Path:
    """The variant's library, made in the last of the folders where it is in none. Raises NativeUnavailable."""
    for folder in folders:
        if (folder / variant.file_name).is_file():
            return folder / variant.file_name
    return build(variant, folders[-1], find_compiler(compilers))


def build(variant: Variant, folder: Path, compiler: str) -> Path:
    """Compile one variant into a folder. Raises NotKept, or NativeUnavailable with the compiler's first words."""
    target = folder / variant.file_name
    with tempfile.TemporaryDirectory() as scratch:
        objects, made = [], Path(scratch) / "native.so"
        for source in SOURCES:
            objects.append(str(Path(scratch) / f"{source.stem}.o"))
            _run([compiler, *FLAGS, *variant.target, "-c", str(source), "-o", objects[-1]])
        _run([compiler, "-shared", *objects, "-o", str(made), "-Wl,--no-undefined", *_threads(), "-lm"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkstemp(dir=folder, prefix=".part-")[1])
            shutil.copyfile(made, part)
            part.chmod(0o644)  # an image's users are not who made it
            part.replace(target)
        except OSError as error:
            raise NotKept(f"{folder} cannot be written: {error.strerror}") from error
    return target


def _threads() -> list[str]:
    """The OpenMP library that torch has loaded, so that one pool of threads serves both."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.rpartition(" ")[2])
        if path.name.startswith(("libgomp", "libiomp5")):
            return [str(path), f"-Wl,-rpath,{path.parent}"]
    raise NativeUnavailable(f"torch {torch.__version__} has loaded no OpenMP library that compilers can link to")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[0]
        raise NativeUnavailable(f"{command[0]} ended with status {done.returncode} and said: {said[:200]}")


def main() -> None:
    """Build what this machine's compiler can: its own architecture's variants."""
    own = [variant for variant in VARIANTS if ("asimd" in variant.needs) == ("asimd" in cpu_flags())]
    for variant in own:
        print(build(variant, PREBUILT, find_compiler()))


if __name__ == "__main__":
    try:
        main()
    except NativeUnavailable as error:
        sys.exit(str(error))
