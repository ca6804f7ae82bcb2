"""The feature sets of a dataset: lists them, or makes one of its items' pictures or texts.

em3 features --data data/ml-100k
em3 features image --data data/ml-100k --encoder efficientnet-lite0
em3 features text --data data/ml-100k --encoder path/to/all-MiniLM-L6-v2 --fields title,genres

`em3 features image` is `em3 extract --modality image` by another name, with all of its options. Encoders that are known by name,
and the packages that carry their weights:

"""

import sys

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError, nearest
from em3_jax.data.codes import read_codes
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.features import extract
from em3_jax.features.known import installs

MODALITIES = ("image", "text")


def listing(dataset: Dataset) -> str:
    """A line for each feature set: its encoder, shape and how many items it covers; and one for each code set."""
    names = sorted(path.name for path in (dataset.root / "features").glob("[!.]*") if path.is_dir())
    if not names:
        return (
            f"{dataset.root}: no feature sets; make one with `em3 features image --data {dataset.root} --encoder ...`"
        )
    raw = {True: ", raw", False: ""}
    lines = [f"  {one.describe()}{raw[one.is_raw]}" for one in map(dataset.features, names)]
    codes = sorted(path.name for path in (dataset.root / "codes").glob("[!.]*") if path.is_dir())
    lines += [f"  codes {read_codes(dataset, name).describe()}" for name in codes]
    return "\n".join([f"{dataset.root}:", *lines])


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0] in MODALITIES:
        modality, *others = arguments
        extract.main(["--modality", modality, *others])
        return
    parser = cli.Parser(prog="em3 features", description=(__doc__ or "") + "\n".join(f"  {one}" for one in installs()))
    words = "what to make; without it the sets are listed"
    parser.add_argument("modality", nargs="?", metavar="|".join(MODALITIES), help=words)
    parser.add_argument("--data", type=paths.local, help="dataset folder")
    kind = parser.parse_known_args(arguments)[0].modality
    if kind in MODALITIES:
        raise UserError(f"em3 features: '{kind}' has to come first, as in `em3 features {kind} --data ...`")
    if kind and arguments[0] == kind:
        raise UserError(f"em3 features {kind}: no such kind of content; {nearest(kind, MODALITIES)}")
    found = parser.parse_args(arguments)
    if kind:
        parser.error(f"'{kind}' is no option")
    if found.data is None:
        parser.error("--data is missing")
    terminal.result(listing(open_dataset(found.data)))
