"""The house plan: who may import whom, what a fresh API process loads, what no file may contain."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for root in ("server", "kernels", "models") for path in (ROOT / root).rglob("*.py"))
LATE_IMPORT = re.compile(r"^[ \t]+(?:from|import) trefoil", re.MULTILINE)
ALLOWED_LATE = {"serve.py"}


@pytest.mark.parametrize("module", ["trefoil.api.server", "trefoil.cli.main", "trefoil_models.tokenizer"])
def test_the_api_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_engine_needs_no_web_stack() -> None:
    banned = {"fastapi", "uvicorn", "starlette", "pydantic", "typer", "transformers"}
    code = f"import sys, trefoil.engine.startup; sys.exit(', '.join({banned} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_its_job_and_hides_no_import(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name != "__init__.py":
        assert text.startswith('"""'), "a file opens with its job"
    if path.name not in ALLOWED_LATE:
        assert not LATE_IMPORT.search(text), "our own modules are imported at the top"
    assert path.name not in {"utils.py", "helpers.py", "common.py"}
