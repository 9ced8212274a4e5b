"""What README and guides show and link to: tables are those of the results, links and pictures lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.documentation import PAGES, ROOT, code_removed
from tests.scripts import load

# [text](target), src="target", srcset="target"; mail and web addresses are not followed.
LINK = re.compile(r"(?:\]\(|\bsrc(?:set)?=\")(?![a-z]+:)(?P<path>[^)\s\"#]*)(?:#(?P<anchor>[^)\s\"]+))?")
# GitHub resolves these where the repository is published.
PUBLISHED = "../../actions/"
each_page = pytest.mark.parametrize("page", PAGES)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them, and those of documented names."""
    headings = re.findall(r"^#+ (.+)$", code_removed(text), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    found = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}
    return found | set(re.findall(r"^::: (\S+)", text, re.MULTILINE))


def test_tables_are_those_of_the_results() -> None:
    tables = load("benchmarks/tables.py")
    marked = [found["name"] for page in tables.PAGES for found in tables.MARKED.finditer(page.read_text("utf-8"))]
    assert set(marked) == set(tables.TABLES)
    for page in tables.PAGES:
        text = page.read_text("utf-8")
        assert tables.filled(text) == text, "run: python benchmarks/tables.py"


@each_page
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for link in LINK.finditer(re.sub(r"`[^`\n]+`", "", code_removed(text))):
        if link["path"].startswith(PUBLISHED):
            continue
        target = ((ROOT / page).parent / link["path"]).resolve() if link["path"] else ROOT / page
        assert target.exists() and target.is_relative_to(ROOT), link.group()
        if link["anchor"]:
            assert link["anchor"] in anchors(target.read_text("utf-8")), link.group()


def test_the_readme_is_short() -> None:
    """A screen and a half: what it is, how to get it, one table, one picture, links."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 100 and len(readme.split()) <= 800


def test_figures_of_the_tutorials_are_those_of_their_notebooks() -> None:
    rows = re.findall(r"^\| \[(\w+)\].*\| (.*) \|$", (ROOT / "tutorials/README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for name, results in rows:
        notebook = (ROOT / f"tutorials/{name}.ipynb").read_text("utf-8")
        assert not [figure for figure in re.findall(r"\d+\.\d+", results) if figure not in notebook], name
