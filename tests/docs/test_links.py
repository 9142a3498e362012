"""What the documents point at is there: links to files, and our own paths in backticks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/**/*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
OWN_PATH = re.compile(r"`((?:server|models|kernels|clients|tests|docs|deploy|benchmarks|examples)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_points_at_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    places = [page.parent / link for link in LINK.findall(text)] + [ROOT / path for path in OWN_PATH.findall(text)]
    assert [str(place) for place in places if not place.exists()] == []
