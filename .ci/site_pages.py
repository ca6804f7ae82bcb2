"""What mkdocs.yml hooks in: pages stay where GitHub shows them, and the site has them all.

A page of docs/ links to `../benchmarks/NOTES.md` and the README to `docs/training.md`. In the site
docs/ is the root and the README its first page; what else a page links to stands at its own path.
A notebook is a page like any other: its cells, and below them what they printed and drew.
"""

import base64
import json
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
    return "index.md" if path == FIRST else re.sub(r"\.ipynb$", ".md", path.removeprefix("docs/"))


def in_checkout(uri: str) -> str:
    """The file of the checkout that a page of the site is."""
    notebook = re.sub(r"\.md$", ".ipynb", uri)
    places = [path for path in (f"docs/{uri}", uri, notebook) if (ROOT / path).exists()]
    return FIRST if uri == "index.md" else places[0] if places else uri


def as_markdown(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook, and the pictures that stand beside it: name -> PNG."""
    lines, pictures = [], {}
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        lines.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                lines.append("```text\n" + "".join(output["text"]).rstrip() + "\n```")
            elif "image/png" in output["data"]:
                name = f"{notebook.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(output["data"]["image/png"])
                lines.append(f"![drawn by the cell above]({name})")
    return "\n\n".join(lines) + "\n", pictures


def text_of(path: str) -> str:
    """A page of the checkout, as Markdown."""
    file = ROOT / path
    return as_markdown(file)[0] if path.endswith(".ipynb") else file.read_text("utf-8")


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
        if path.endswith(".ipynb"):
            page, pictures = as_markdown(ROOT / path)
            beside = {f"{posixpath.dirname(path)}/{name}": png for name, png in pictures.items()}
            for uri, content in {in_site(path): page, **beside}.items():
                files.append(File.generated(config, uri, content=content))
        elif files.get_file_from_path(in_site(path)) is None:
            files.append(File.generated(config, in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith((".md", ".ipynb")):
            new = set(targets(path, text_of(path)).values()) - seen
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
