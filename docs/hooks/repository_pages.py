"""Guides that stand beside the code, as pages of the site; and links from pages to files of the repository.

A link is written relative to the file that it stands in, so that it works in the repository too. Here a link to a page
becomes a link within the site, a picture is copied, and every other file is linked where the repository is published
(``repo_url``).
Badges are left out: they would be loaded from elsewhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "index.md": "README.md",
    "tutorials.md": "tutorials/README.md",
    "examples.md": "examples/README.md",
    "official-s4d.md": "examples/VERIFICATION_vs_official_s4d.md",
    "benchmarks.md": "benchmarks/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "csrc.md": "csrc/README.md",
    "changelog.md": "CHANGELOG.md",
}
PICTURES = (".png", ".svg")
# [text](target), ![text](target), src="target", srcset="target"; not what has a scheme, nor an anchor of the same page.
LINK = re.compile(
    r"(?P<before>\]\(|\b(?P<html>src(?:set)?=)\")(?![a-z]+:|#)(?P<path>[^)\s\"#]+)(?P<anchor>#[^)\s\"]*)?"
)
BADGE = re.compile(r"^\[!\[.*\n", re.MULTILINE)
FENCE = re.compile(r"^(```.*?^```|    \S[^\n]*)$", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for picture in ROOT.glob("*/images/*"):
        files.append(File.generated(config, picture.relative_to(ROOT).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewritten(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["path"]))
        # MkDocs takes links of Markdown from the page's file to its address, but not those of HTML.
        here = page.url if found["html"] else posixpath.dirname(page.file.src_uri)
        return found["before"] + _address(target, here, page, config) + (found["anchor"] or "")

    # Code is left as it is: the odd parts are what FENCE matches.
    parts = FENCE.split(BADGE.sub("", markdown))
    return "".join(part if index % 2 else LINK.sub(rewritten, part) for index, part in enumerate(parts))


def _address(target: str, here: str, page: Page, config: MkDocsConfig) -> str:
    if not (ROOT / target).exists():
        raise PluginError(f"{page.file.src_uri} links to {target}, which does not exist")
    pages = {source: name for name, source in PAGES.items()}
    if target.startswith("docs/"):
        inside = target.removeprefix("docs/")
    elif target in pages:
        inside = pages[target]
    elif target.endswith(PICTURES):
        inside = target
    else:
        return f"{str(config.repo_url).rstrip('/')}/blob/main/{target}"
    return posixpath.relpath(inside, here or ".")
