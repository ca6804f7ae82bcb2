"""How a text encoder is to be used, by its own word: what a sentence-transformers folder says.

Such a folder (Reimers and Gurevych, Sentence-BERT, 2019, arXiv:1908.10084) is a checkpoint with a
list of modules beside it: which pooling makes a vector of the tokens, after how many tokens a text
is cut, whether the vector gets length 1, and what is put before each text. Options of the command
go before it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.core.errors import UserError
from em3_jax.features.weights import read_json, read_json_list

MODULES = "modules.json"
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_LENGTH_FILES = tuple(f"sentence_{kind}_config.json" for kind in _KINDS)
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Declared(NamedTuple):
    """What a sentence-transformers folder says.

    Attributes:
      transformer: folder of the checkpoint, the folder itself or one in it.
      pooling: of `encoding.TEXT_POOLINGS`.
      normalize: whether vectors get length 1.
      max_length: tokens after which a text is cut, special ones included; None = what fits.
      lower_case: whether texts become lower case before they are tokenized.
      prompts: name -> what may be put before a text.
      default_prompt: name of the one that is, "" = none.
      prompt_counts: whether the prompt's tokens take part in the pooling.
      unsupported: what this project has not, in words; "" = nothing.
    """

    transformer: Path
    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = {}
    default_prompt: str = ""
    prompt_counts: bool = True
    unsupported: str = ""


class Use(NamedTuple):
    """How an encoder is used.

    Attributes:
      folder: of the checkpoint.
      pooling, normalize: see `encoding.Settings`.
      max_length: tokens after which a text is cut; None = what the encoder can take.
      may_be_longer: whether a `max_length` beyond what the encoder can take means that.
      prompt: put before each text.
      lower_case: whether texts become lower case.
      strip: whether white space around texts goes.
      notes: lines for a person: what the folder asks for, and what options replace.
      declared: JSON values for the manifest: what the folder says; {} if it says nothing.
    """

    folder: Path
    pooling: str
    normalize: bool
    max_length: int | None = None
    may_be_longer: bool = False
    prompt: str = ""
    lower_case: bool = False
    strip: bool = False
    notes: tuple[str, ...] = ()
    declared: Mapping[str, Any] = {}

    def text(self, text: str) -> str:
        """The text as the tokenizer is to see it."""
        text = self.prompt + text
        text = text.strip() if self.strip else text
        return text.lower() if self.lower_case else text

    def preprocessing(self) -> dict[str, Any]:
        """JSON values for the manifest, beside the length; {} where texts stay as they are."""
        facts = {"prompt": self.prompt, "lower_case": self.lower_case}
        return {name: value for name, value in facts.items() if value}


def transformer_folder(folder: Path) -> Path:
    """Where the checkpoint of an encoder's folder is: in it, or where its modules.json says.

    Raises:
      UserError: modules.json cannot be read or names no transformer.
    """
    return folder if not (folder / MODULES).is_file() else declared(folder).transformer


def use_of(folder: Path, *, pooling: str | None, normalize: bool, max_length: int | None, prompt: str | None) -> Use:
    """How the encoder in `folder` is used: as options say, else as the folder says, else the mean of the tokens.

    Args:
      folder: of the encoder.
      pooling: given, it stands for all that comes after the transformer: the folder's normalisation too.
      normalize: True asks for length 1 even where the folder does not.
      max_length: see `Use`.
      prompt: name of one of the folder's prompts; None = its default, "" = none.

    Raises:
      UserError: a file of the folder cannot be read, or it asks for something that is not supported.
    """
    if not (folder / MODULES).is_file():
        if prompt:
            raise UserError(f"--prompt {prompt}: {folder} has no prompts; leave it out")
        return Use(folder, pooling or "mean", normalize, max_length)
    own = declared(folder)
    if own.unsupported and pooling is None:
        raise UserError(
            f"{folder / MODULES}: {own.unsupported} is not supported; give --pooling to use its transformer without "
            "what comes after it, or take another encoder"
        )
    name = own.default_prompt if prompt is None else prompt
    if name and name not in own.prompts:
        raise UserError(f"--prompt {name}: {folder} has {', '.join(own.prompts) or 'none'}; choose one of these")
    text = own.prompts.get(name, "")
    if text and not own.prompt_counts and pooling is None:
        raise UserError(f"{folder}: leaves its prompt out of the pooling, which is not supported; give --prompt ''")
    use = Use(
        folder=own.transformer,
        pooling=pooling or own.pooling,
        normalize=normalize or (own.normalize and pooling is None),
        max_length=own.max_length if max_length is None else max_length,
        may_be_longer=max_length is None,
        prompt=text,
        lower_case=own.lower_case,
        strip=True,
        declared=_as_json(own),
    )
    return use._replace(notes=_notes(folder, own, use))


def declared(folder: Path) -> Declared:
    """What modules.json and the files beside it say."""
    where = folder / MODULES
    kinds: list[str] = []
    paths: dict[str, Path] = {}  # of the first module of each kind
    for module in read_json_list(where):
        kind, path = (module.get(key) for key in ("type", "path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str) or Path(path).is_absolute() or ".." in path:
            raise UserError(f"{where}: {module!r} is no module with a type and a path in the folder; copy it again")
        kinds.append(kind.rpartition(".")[2])
        paths.setdefault(kinds[-1], folder / path)
    if not kinds or kinds[0] != "Transformer":
        raise UserError(
            f"{where}: begins with {kinds[0] if kinds else 'nothing'}, not a Transformer; take another encoder"
        )
    result = Declared(paths["Transformer"], normalize="Normalize" in kinds)
    strange = [kind for kind in kinds[1:] if kind not in ("Pooling", "Normalize", "Dropout")]
    result = result._replace(unsupported=f"its module {strange[0]}" if strange else "")
    if "Pooling" in paths:
        result = result._replace(**_pooling(paths["Pooling"] / "config.json", result.unsupported))
    return result._replace(**_length(result.transformer), **_prompts(folder / "config_sentence_transformers.json"))


def _pooling(file: Path, unsupported: str) -> dict[str, Any]:
    content = read_json(file)
    named = content.get("pooling_mode")  # of newer versions; one name, or several
    chosen = [named] if isinstance(named, str) else named
    if not isinstance(chosen, list):
        chosen = [name for flag, name in _POOLING_FLAGS.items() if content.get(flag)]
    known = len(chosen) == 1 and chosen[0] in _POOLING_FLAGS.values()
    problem = "" if known else f"pooling by {' and '.join(map(str, chosen)) or 'nothing'}"
    pooling = chosen[0] if known else "mean"
    return {
        "pooling": pooling,
        "prompt_counts": content.get("include_prompt", True) is not False,
        "unsupported": unsupported or problem,
    }


def _length(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in _LENGTH_FILES if (folder / name).is_file()), None)
    content = read_json(file) if file else {}
    length = content.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 3):
        raise UserError(f"{file}: max_seq_length is {length!r}, must be a number from 3 on; copy it again")
    return {"max_length": length, "lower_case": content.get("do_lower_case") is True}


def _prompts(file: Path) -> dict[str, Any]:
    content = read_json(file) if file.is_file() else {}
    prompts, default = content.get("prompts") or {}, content.get("default_prompt_name") or ""
    plain = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if not plain or (default and default not in prompts):
        raise UserError(f"{file}: prompts are no texts by name, or have no default '{default}'; copy it again")
    return {"prompts": prompts, "default_prompt": default}


def _as_json(own: Declared) -> dict[str, Any]:
    prompt = own.prompts.get(own.default_prompt, "")
    return {
        "pooling": own.pooling,
        "normalize": own.normalize,
        "max_seq_length": own.max_length,
        "do_lower_case": own.lower_case,
        "prompt": prompt,
    }


def _notes(folder: Path, own: Declared, use: Use) -> tuple[str, ...]:
    cut = f"texts cut at {own.max_length} tokens" if own.max_length else "no length of its own"
    asked = [f"{own.pooling} pooling", cut, *["vectors of length 1"] * own.normalize]
    asked += ["lower case"] * own.lower_case
    asked += [f"the prompt {own.prompts[own.default_prompt]!r}"] if own.default_prompt else []
    notes = [f"{folder.name} is a sentence-transformers folder: {', '.join(asked)}"]
    if use.pooling != own.pooling or use.normalize != own.normalize:
        length = "length 1" if use.normalize else "no normalisation"
        notes.append(f"options replace that by {use.pooling} pooling and {length}")
    if use.max_length != own.max_length:
        notes.append(f"--max-length {use.max_length} replaces its length")
    if use.prompt != own.prompts.get(own.default_prompt, ""):
        notes.append(
            f"--prompt puts {use.prompt!r} before each text" if use.prompt else "--prompt leaves its prompt out"
        )
    elif own.prompts and not use.prompt:
        notes.append(f"it has prompts ({', '.join(own.prompts)}); --prompt <name> puts one before each text")
    return tuple(notes)
