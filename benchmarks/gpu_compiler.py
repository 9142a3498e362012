"""A Triton driver for a chip that is not there: kernels are compiled as a launch would, inspected, and not run.

Real launch code meets it, so what is inspected is what that chip would be given: the same signature, alignment,
constants and sizes. A kernel that needs more shared memory than the chip has is refused by Triton's own check. For
tests and for the table of docs/kernels.md.
"""

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
DEVICES = itertools.count()
"""Each use is a device of its own, so that what another test compiled is not taken for compiled."""
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, "gfx942": 64 << 10}
"""What one block may ask for (CUDA C programming guide, table of compute capabilities; CDNA3 ISA guide, LDS)."""


@dataclass(frozen=True, slots=True)
class Built:
    """One compiled kernel: its name, what it needs of the chip, and its machine code (empty on AMD)."""

    name: str
    registers: int
    spills: int
    shared: int
    sass: str

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.sass))


@dataclass
class CompileOnly(DriverBase):
    """Stands where the driver of a GPU would."""

    arch: int | str
    device: int
    built: list[Built] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES[self.arch]},
            load_binary=lambda name, binary, shared, device: (None, None, 0, 0, 1024),
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        is_cuda = isinstance(self.arch, int)
        return GPUTarget("cuda" if is_cuda else "hip", self.arch, 32 if is_cuda else 64)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Triton asks for a launcher when a compiled kernel is first used; ours notes nothing and runs nothing."""
        return lambda *args: None


@contextmanager
def compiling_for(arch: int | str) -> Iterator[list[Built]]:
    """Every kernel that is launched inside is compiled for `arch` and added to the list, once a variant."""
    driver = CompileOnly(arch, next(DEVICES))

    def note(*_: Any, key: str, fn: Any, **__: Any) -> None:
        kernel = fn.jit_function.device_caches[driver.device][0][key]
        driver.built.append(_inspected(kernel, arch))

    active, triton.runtime.driver._active = triton.runtime.driver._active, driver
    triton.knobs.runtime.jit_post_compile_hook = note
    try:
        yield driver.built
    finally:
        triton.runtime.driver._active = active
        triton.knobs.runtime.jit_post_compile_hook = None


def _inspected(kernel: Any, arch: int | str) -> Built:
    if not isinstance(arch, int):
        text = kernel.asm["amdgcn"]
        registers, spills = (_number(text, rf"\.{name}:\s+(\d+)") for name in ("vgpr_count", "vgpr_spill_count"))
        return Built(kernel.name, registers, spills, kernel.metadata.shared, "")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        usage, sass = (
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass)) + _number(usage, r"STACK:(\d+)")
    return Built(kernel.name, _number(usage, r"REG:(\d+)"), spills, kernel.metadata.shared, sass)


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in the compiler's report"
    return int(found[1])
