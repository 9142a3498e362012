"""Every example of docs/tasks runs against the demo server as it stands, and says what the page says."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.serving import Server, serving

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tasks").glob("[a-z]*.md"))
EXAMPLE = re.compile(r"```(sh|python)\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo models with a worker, as `make serve` has them."""
    with serving(tmp_path_factory.mktemp("pages") / "stderr", env={"TREFOIL_NO_WORKER": "0"}) as running:
        yield running


def said_by(kind: str, code: str) -> str:
    if kind == "sh":
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "example", "exec"), {})
    return out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_a_pages_examples_run_and_say_what_it_says(server: Server, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on loopback
    examples = EXAMPLE.findall(page.read_text(encoding="utf-8"))
    assert examples
    for kind, code, expected in examples:
        said = said_by(kind, code.replace(ADDRESS, server.url))
        assert expected.strip() in said, (code, said)
        assert "error" not in said[:20]
