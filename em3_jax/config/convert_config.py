"""Moves an experiment of another program over: em3 convert-config fuxictr model_config.yaml dataset_config.yaml --out moved

Reads the two YAML files of an experiment of FuxiCTR and writes, into the folder --out, a mapping for `em3 prepare table`
and a recipe for `em3 train`. DIN, SIM, DCNv2, DeepFM, WideDeep, MMoE, PLE and SharedBottom are known. FuxiCTR has columns
where em3_jax has users, items and impressions: --user and --item name the columns of ids where their names do not say it;
other columns become fields of the impressions, or of the items. Users' sequences (`user_info`) become a table of events in
--out. What is not carried over is told, a line for each key.
"""

from pathlib import Path
from typing import Any

import yaml

from em3_jax import cli
from em3_jax.config.fuxictr import EVENTS, convert, sequences
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError, nearest


class _Loader(yaml.SafeLoader):
    """Safe YAML, and tuples as lists."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", yaml.SafeLoader.construct_yaml_seq)
TUNER = ("tuner_space", "base_config")


def read(path: Path, section: str) -> tuple[str, dict[str, Any]]:
    """(name, section) of a YAML file, over what its section Base says.

    Args:
      section: its name; "" = the only one there is.

    Raises:
      UserError: the file is not there, is no such YAML, or has not that section.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]}); give a config of FuxiCTR") from None
    sections = (
        {str(name): one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}
    )
    if isinstance(found, dict) and any(key in found for key in TUNER):
        raise UserError(
            f"{path}: a config of FuxiCTR's tuner, with several values a key; give the model_config.yaml and the "
            "dataset_config.yaml that run_param_tuner.py makes of it"
        )
    base = sections.pop("Base", {})
    if not section and len(sections) == 1:
        section = next(iter(sections))
    if section not in sections:
        names = ", ".join(sections) or "none"
        hint = nearest(section, sections) if section and sections else f"there are: {names}"
        raise UserError(f"{path}: which section? {hint}; give --experiment, or dataset_id in the model's section")
    return section, base | sections[section]


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("program", choices=("fuxictr",), help="whose configs they are")
    parser.add_argument("model_config", type=paths.local, help="its model_config.yaml")
    parser.add_argument("dataset_config", type=paths.local, help="its dataset_config.yaml")
    parser.add_argument("--experiment", default="", help="the section of the model's file (default: its only one)")
    parser.add_argument("--user", default="", help="the column of users' ids (default: by its name)")
    parser.add_argument("--item", default="", help="the column of items' ids (default: DIN's target, or by its name)")
    parser.add_argument("--out", type=paths.local, required=True, help="the folder for mapping.toml and recipe.py")
    args = parser.parse_args()
    name, model = read(args.model_config, args.experiment)
    _, dataset = read(args.dataset_config, str(model.get("dataset_id") or ""))
    folder, out = args.dataset_config.absolute().parent, args.out.absolute()
    made = convert(model, dataset, name, folder, args.user, args.item, out)
    for file in ("mapping.toml", "recipe.py", EVENTS):
        if (args.out / file).exists():
            raise UserError(f"{args.out / file}: exists already; choose another --out")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if made.user_info is not None:
            sequences.write(made.user_info, out / EVENTS, *made.ids)
        (args.out / "mapping.toml").write_text(made.mapping, encoding="utf-8")
        (args.out / "recipe.py").write_text(made.recipe, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written ({error.strerror}); choose another") from None
    said = [f"{args.out}: mapping.toml and recipe.py written", *(f"not carried over: {note}" for note in made.notes)]
    following = (
        f"em3 prepare table --mapping {args.out / 'mapping.toml'} --out {args.out / 'data'}; "
        f"em3 train --config={args.out / 'recipe.py'} --config.data.root={args.out / 'data'} --workdir={args.out / 'run'}"
    )
    terminal.result("\n".join(said), next_command=following, out=str(args.out), not_carried_over=made.notes)
