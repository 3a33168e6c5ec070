"""Every relative link in the documents leads to a file that exists, and to a heading of it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md")]
    + [page for room in ("docs", "helm", "images", "self_reward", "tests") for page in (ROOT / room).rglob("*.md")]
)


def text_of(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_resolves(page: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if ":" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    assert broken == []


def test_the_readme_links_every_stage_and_the_index_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    stages = [stage.name for stage in (ROOT / "stages").glob("[0-9]*.py")]
    assert len(stages) == 8 and [name for name in stages if f"(stages/{name})" not in readme] == []
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "README.md" and f"]({p.name})" not in index] == []


def test_every_test_file_that_guards_a_bug_exists():
    rows = re.findall(r"^\| (B\d+[B\d ]*) \|.*\| (.+) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert len(rows) == 17
    for bugs, guards in rows:
        folder = ""
        for name in re.findall(r"[a-z_/]*test_[a-z_]+\.py", guards):
            folder = name.rpartition("/")[0] or folder  # a bare name is in the folder of the one before
            assert (ROOT / folder / name.rpartition("/")[2]).is_file(), f"{bugs}: {name}"
