"""Makes an environment of their own for the engines that we are compared with: `python benchmarks/peers.py encoders`.

torch goes in first and by itself, so that no other package chooses a build of it.
"""

import argparse
import subprocess
import sys
import venv
from pathlib import Path

PEERS = Path(__file__).parent.parent / "models.local" / "peers"
TORCH = "torch==2.13.0"
PACKAGES = {
    "encoders": (
        "ctranslate2==4.8.5",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "onnxscript==0.7.2",
        "sentence-transformers==6.2.0",
        "sympy",
        "transformers==5.24.0",
    ),
}
"""What each environment holds besides torch."""


def python_of(name: str, folder: Path = PEERS) -> Path:
    """An environment's interpreter."""
    return folder / name / "bin" / "python"


def make(name: str, folder: Path = PEERS) -> Path:
    """The interpreter of an environment that has all its packages; what is there already is kept."""
    python = python_of(name, folder)
    if not python.exists():
        venv.create(folder / name, with_pip=True)
    for packages in ((TORCH,), (TORCH, *PACKAGES[name])):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def main() -> None:
    """Make what is asked for and say where its Python is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(PACKAGES))
    parser.add_argument("--folder", type=Path, default=PEERS, help="where environments are kept")
    given = parser.parse_args()
    for name in given.names:
        print(make(name, given.folder))


if __name__ == "__main__":
    sys.exit(main())
