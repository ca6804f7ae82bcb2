"""Tells what embeddings have learnt, by the neighbours that items have in them.

    em3 analyze --workdir runs/em3 --baseline runs/id_only --out reports/embeddings

writes to --out
    tables.md, analysis.json    table 8: are cold items near in ID space to items that look and read alike; table 9: are popular
                                items near in content space to items that the same people like
    index.html                  a page to browse: search an item, see its neighbours in each space, with pictures; a map of the
                                items. It needs no server and no network, and can be sent to someone.
"""

import argparse
from pathlib import Path

from em3_jax import cli
from em3_jax.analysis import page, similarity, spaces
from em3_jax.analysis.page import Look
from em3_jax.analysis.similarity import Choice
from em3_jax.core import paths, strict_json, terminal
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.core.progress import Progress


def analyze(analysed: spaces.Analysed, out: str | Path, choice: Choice, look: Look) -> list[dict]:
    """Writes the report of two runs; returns table 8, again where there is an independent view, and 9, as JSON values."""
    choice.check()
    for option, value, least in (("page-items", look.most_items, 2), ("thumbnails", look.most_pictures, 0)):
        if value < least:
            raise UserError(f"--{option} {value}: give {least} or more")
    out = Path(out)
    with Lock(out, hint="wait for it, or choose another --out"):
        return _write(analysed, out, choice, look)


def _write(analysed: spaces.Analysed, out: Path, choice: Choice, look: Look) -> list[dict]:
    cold, popular = similarity.cold_items(analysed, choice), similarity.popular_items(analysed, choice)
    measured = [(8, cold, None), (8, cold, analysed.independent), (9, popular, None)]
    measured = measured if analysed.independent else measured[::2]
    progress, tables = Progress(len(measured) + len(page.ORDER), unit="part"), []
    for number, items, space in measured:
        tables.append(similarity.compared(analysed, number, items, choice, space))
        progress.advance()
    shown = page.contents(analysed, tables, cold, popular, choice, look, progress.advance)
    progress.close()
    numbers = {
        "model": analysed.model,
        "runs": analysed.runs,
        "dataset": str(analysed.dataset.root),
        "data_hash": analysed.dataset.meta["data_hash"],
        "frozen": analysed.frozen_sets,
        "settings": choice._asdict(),
        "tables": tables,
    }
    written = {
        "tables.md": similarity.markdown(tables, analysed, choice),
        "analysis.json": strict_json.dumps(numbers, indent=1, ensure_ascii=False),
        "index.html": page.render(shown),
    }
    for name, text in written.items():
        (out / name).write_text(text, encoding="utf-8")
    return tables


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__)
    choice, look = Choice(), Look()
    add = parser.add_argument
    add("--workdir", type=paths.local, required=True, help="the folder of a training run with content")
    add("--baseline", type=paths.local, required=True, help="the folder of a run on IDs alone, on the same dataset")
    add("--out", type=paths.local, required=True, help="folder to write to")
    add("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    group = parser.add_argument_group("tables")
    add = group.add_argument
    add(
        "--cold-most",
        type=int,
        default=choice.cold_most,
        help="cold items have 1 to so many training showings, as candidates and in histories (default %(default)s)",
    )
    add(
        "--popular-share",
        type=float,
        default=choice.popular_share,
        help="share of the items, by training clicks, that is popular (default %(default)s)",
    )
    add("--neighbours", type=int, default=choice.neighbours, help="nearest items to compare with (default %(default)s)")
    add("--sample", type=int, default=choice.sample, help="items of each table at most (default %(default)s)")
    add("--seed", type=int, default=choice.seed, help="of the sample and the map (default %(default)s)")
    add(
        "--frozen",
        type=cli.as_list,
        default=(),
        metavar="NAME,...",
        help="feature sets to measure content in (default: those that the run reads)",
    )
    add(
        "--independent",
        type=cli.as_list,
        default=(),
        metavar="NAME,...",
        help="feature sets that the run does not read, or `words`, to measure table 8 in as well (default: those there "
        "are, else words where items have texts)",
    )
    add("--approximate", action="store_true", help="search by a graph (HNSW): for millions of items")
    group = parser.add_argument_group("page")
    add = group.add_argument
    add("--field", help="field to colour the map by at first (default: one with few values)")
    add("--title", metavar="COLUMN", help="text column with the titles (default: the dataset's first)")
    add(
        "--items",
        type=cli.as_list,
        default=(),
        metavar="ID,...",
        help="items to have on the page; it opens with the first",
    )
    add("--page-items", type=int, default=look.most_items, help="items on the page at most (default %(default)s)")
    add("--images", type=paths.local, metavar="FOLDER", help="of <item id>.jpg, in place of the dataset's own pictures")
    add("--thumbnails", type=int, default=look.most_pictures, help="pictures at most (default %(default)s)")
    add("--no-pictures", action="store_true", help="a small page without any")
    return parser


def main() -> None:
    args = _parser().parse_args()
    choice = Choice(args.cold_most, args.popular_share, args.neighbours, args.sample, args.seed, args.approximate)
    choice.check()
    analysed = spaces.read(args.workdir, args.baseline, args.data, args.frozen, args.independent)
    look = Look(
        field=args.field,
        title=args.title,
        items=tuple(spaces.rows_of(analysed.dataset, args.items, "--items").tolist()),
        most_items=args.page_items,
        most_pictures=0 if args.no_pictures else args.thumbnails,
        images=args.images,
        seed=args.seed,
    )
    analyze(analysed, args.out, choice, look)
    tables = terminal.markdown((args.out / "tables.md").read_text(encoding="utf-8"))
    terminal.result(f"{tables}\n{args.out / 'index.html'}: written; open it in a browser")
