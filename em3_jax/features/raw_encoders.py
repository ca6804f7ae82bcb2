"""The encoders that stand in the model, from what a config names: checkpoint folders, known names, nets from scratch."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from em3_jax.config.schema import OnClicks
from em3_jax.core import trees
from em3_jax.core.errors import UserError, nearest
from em3_jax.data.format import FeatureSet
from em3_jax.data.images import unlike
from em3_jax.features import convert, dial, encoding, in_model, known, lower, scratch_encoders, sentences
from em3_jax.features.in_model import PLAINLY, How, RawEncoder
from em3_jax.features.scratch_encoders import Scratch
from em3_jax.features.weights import read_json


def load(
    folders: Mapping[str, str],
    feature_sets: Iterable[FeatureSet],
    how: How = PLAINLY,
    scratch: Scratch = Scratch(),  # noqa: B008
) -> dict[str, RawEncoder]:
    """Name -> encoder of the raw ones of the `feature_sets`, and of those that "cnn:.." reads.

    Args:
      folders: name -> folder of its encoder, name of a known one, or "cnn:<name>", see `scratch_encoders`.
      how: they are run and trained.
      scratch: what encoders from scratch are made of.

    Raises:
      UserError: a raw set has no folder, a folder no raw set, or it does not hold the encoder the set was made for;
        or `how` has what an encoder cannot do.
    """
    scratch_ones = {name for name, folder in folders.items() if scratch_encoders.is_scratch(folder)}
    sets = {features.name: features for features in feature_sets if features.is_raw or features.name in scratch_ones}
    for name, features in sets.items():
        if name not in folders:
            raise UserError(
                f"config.model.encoders.{name}: missing, but feature set '{name}' is raw; give the folder of "
                f"{features.manifest['encoder']} and set config.model.content=raw, or use features made without --raw"
            )
    for name in folders:
        if name not in sets:
            raise UserError(
                f"config.model.encoders.{name}: config.data.features has no raw set of that name; leave it out, or make one "
                "with `em3 extract --raw`"
            )
    for name in how.trains:
        if name not in sets:
            hint = nearest(name, sets) if sets else "there are none"
            raise UserError(f"config.model.encoder_trains.{name}: no encoder reads a feature set of that name; {hint}")

    def made(name: str, features: FeatureSet) -> RawEncoder:
        if name in scratch_ones:
            return scratch_encoders.make(folders[name], features, scratch, how)
        return _raw_encoder(name, known.place_of(folders[name]), features.manifest, how)

    return {name: made(name, features) for name, features in sets.items()}


def rules_of(name: str, config: OnClicks, params: Mapping[str, Any]) -> tuple[dial.Rule, ...]:
    """The rules of an encoder's parameters in a run, see `dial.rules`; reads its folder's config.json at most."""
    trains, parts = config.model.encoder_trains[name], ()
    encoder = config.model.encoders[name]
    if trains not in dial.WHOLE:
        if scratch_encoders.is_scratch(encoder):
            module: Any = scratch_encoders.module_of(encoder, scratch_encoders.scratch(config))
        else:
            where = sentences.transformer_folder(known.place_of(encoder)) / "config.json"
            module = convert.encoder_from_config(read_json(where), where=where)
        parts = module.parts()
    return dial.rules(name, trains, parts, trees.named_leaves(params), config.optim.multipliers)


def _raw_encoder(name: str, folder: Path, manifest: dict, how: How) -> RawEncoder:
    if not folder.is_dir():
        raise UserError(
            f"config.model.encoders.{name}: {folder}: no such folder; put {manifest['encoder']} there, or set its folder"
        )
    if "pooling" not in manifest:
        raise UserError(
            f"config.model.encoders.{name}: '{name}' was made for encoders that train from scratch; name one of "
            f"those, {', '.join(map(scratch_encoders.PREFIX.__add__, scratch_encoders.SCRATCH))}, or make the set "
            "again with `em3 extract --raw`"
        )
    folder = sentences.transformer_folder(folder)
    settings = encoding.Settings(**{key: manifest[key] for key in encoding.Settings._fields})
    changed = unlike(folder, manifest["preprocessing"]) if manifest["kind"] == "image" else []
    if changed:
        raise UserError(
            f"config.model.encoders.{name}: {folder} wants other pixels than those of '{name}' ({'; '.join(changed)}); "
            f"give the folder of {manifest['encoder']}, or make '{name}' again with this one"
        )
    if settings.random_weights is None and convert.weights_hash(folder) != manifest["weights_hash"]:
        raise UserError(
            f"config.model.encoders.{name}: the weights in {folder} are not those for which '{name}' was made (hash "
            f"{manifest['weights_hash'][:12]}); give the folder of {manifest['encoder']}, or make '{name}' again with this one"
        )
    module, params, _ = encoding.load(folder, manifest["kind"], settings)
    shape, length = manifest["raw"].get("shape"), manifest["raw"].get("length")
    normalised: Callable[[jax.Array], jax.Array]
    if below := manifest.get("below"):
        if how.augment != PLAINLY.augment:
            raise UserError(
                f"config.data.augment: '{name}' holds maps below {below} and no pictures, which alone can be cut; leave it out"
            )
        module, params = lower.upper(module, params, below)
        normalised = functools.partial(lower.numbers, dtype=manifest["raw"]["numbers"])
    elif manifest["kind"] == "image":
        normalised = encoding.normalised(manifest["preprocessing"])
    if manifest["kind"] == "image":
        function = encoding.image_in_training(module, normalised, settings)
        return in_model.of_images(name, params, module.parts(), function, tuple(shape), how)
    padding_id = manifest["raw"]["padding_id"]
    return in_model.of_texts(
        name, params, module.parts(), encoding.text_function(module, settings), length, padding_id, how
    )
