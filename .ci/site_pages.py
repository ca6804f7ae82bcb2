"""What mkdocs.yml hooks in: pages stay where GitHub shows them, and the site has them all.

A page of docs/ links to `../benchmarks/NOTES.md` and the README to `docs/training.md`. In the site
docs/ is the root and the README its first page; what else a page links to stands at its own path.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")  # nav names them
FIRST = "README.md"
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s#]+)")  # of [text](file), and of "[name]: file"
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def in_site(path: str) -> str:
    """Where a file of the checkout stands in the site."""
    return "index.md" if path == FIRST else path.removeprefix("docs/")


def in_checkout(uri: str) -> str:
    """The file of the checkout that a page of the site is."""
    inside = f"docs/{uri}"
    return FIRST if uri == "index.md" else inside if (ROOT / inside).exists() else uri


def targets(page: str, text: str) -> dict[str, str]:
    """Link as written -> file of the checkout that it means; links to elsewhere are not among them."""
    links = {found[2] for found in LINK.finditer(FENCE.sub("", text)) if "://" not in found[2]}
    paths = {link: posixpath.normpath(posixpath.join(posixpath.dirname(page), link)) for link in links}
    return {link: path for link, path in paths.items() if (ROOT / path).is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages beside docs/, and all that pages link to."""
    waiting = [*BESIDE, *(in_checkout(file.src_uri) for file in files)]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(in_site(path)) is None:
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            new = set(targets(path, (ROOT / path).read_text("utf-8")).values()) - seen
            waiting += new
            seen |= new
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """The page with links as the site has them."""
    uri = page.file.src_uri
    found, base = targets(in_checkout(uri), markdown), posixpath.dirname(uri) or "."

    def moved(match: re.Match) -> str:
        path = found.get(match[2])
        return match[0] if path is None else match[1] + posixpath.relpath(in_site(path), base)

    return LINK.sub(moved, markdown)
