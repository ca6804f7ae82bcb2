"""Executes the notebooks of examples/ and stores what they print and draw: make notebooks.

    python .ci/notebooks.py examples/own_loss.ipynb        # no name: all of them

Each runs in an empty folder, on one CPU device. It is written back without times, versions and
paths, so that a notebook whose results are the same is the same file. What goes to stderr, such as
a warning, is an error: nobody should have to read it on a page.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def executed(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """The notebook with its outputs, after it has run in `folder`."""
    place = {"metadata": {"path": folder}}
    NotebookClient(notebook, timeout=1800, record_timing=False, coalesce_streams=True, resources=place).execute()
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = {}, f"cell-{number}"
        for output in cell.get("outputs", ()):
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            if output.get("name") == "stderr" or folder in text or str(ROOT) in text:
                sys.exit(f"cell {number}: a warning or a path of this machine among the outputs: {text}")
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata={})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    for path in map(Path, sys.argv[1:] or sorted(map(str, (ROOT / "examples").glob("*.ipynb")))):
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(nbformat.read(path, as_version=4), folder)
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
