"""schema, parse and kinds: every setting of every recipe has a range, and what is outside is one line that names it."""

import copy
import math

import pytest

from em3_jax.config import kinds, manual, parse, recipes, registry, schema
from em3_jax.config.schema import retrieval as of_retrieval
from em3_jax.core.errors import UserError
from em3_jax.models.aggregators import AGGREGATORS
from em3_jax.models.fusion.frozen import AS_THEY_ARE
from em3_jax.models.lemur import HISTORY_MODULES
from em3_jax.models.ranking import CONTENT_PARTS
from tests.conftest import ROOT, user_error

RECIPES = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.name != "base.py")
HUGE = 10**400  # no float
NEVER = (None, float("nan"), float("inf"), {"a": 1}.keys(), b"x")


def configs():
    """(name, plain values) of every recipe and each of its variants."""
    for name in RECIPES:
        path = str(ROOT / "configs" / name)
        for variant in ("", *recipes.variants(path)):
            yield f"{name}:{variant}", recipes.load(path, variant).to_dict()


CONFIGS = dict(configs())
ALL = {name: value for config in CONFIGS.values() for name, value in parse.settings(config)}


def wrong(kind: kinds.Kind) -> list:
    """Values outside of a kind, made from what it says of itself."""
    match kind:
        case kinds.Whole():
            beyond = [] if kind.most is None else [kind.most + 1]
            return [kind.least - 1, -(10**9), *beyond, HUGE, -HUGE, 2**32, 1.5, True, "3", (3,), *NEVER]
        case kinds.Number():
            ends = [kind.least] if kind.above else []
            ends += [kind.most] if kind.below else [kind.most + 1] if math.isfinite(kind.most) else []
            return [kind.least - 1e-9, -1, *ends, HUGE, -HUGE, -math.inf, True, "0.5", (1.0,), *NEVER]
        case kinds.Flag():
            return [0, 1, "true", "False", 1.0, (True,), *NEVER]
        case kinds.Choice():
            return ["", kind.names[0] + "x", kind.names[0].upper(), 1, True, (kind.names[0],), *NEVER]
        case kinds.Several():
            few = [()] if kind.least else []
            return [*few, *(((value,)) for value in wrong(kind.of)), "text", 3, *NEVER]
        case kinds.Pattern():
            return ["(", "*a", "[a", 3, (), *NEVER]
        case kinds.Multiplier():
            return [("(", 1.0), ("a", -1.0), ("a", math.nan), ("a",), ("a", "b"), "ab", *NEVER]
        case kinds.Text():
            return [3, 1.5, True, ("a",), *NEVER, *([] if kind.empty else [""])]
    raise AssertionError(f"no wrong values for {kind}")


def of_setting(name: str) -> dict:
    """A config that has the setting."""
    name = name.removesuffix(".*")
    return next(config for config in CONFIGS.values() if has(config, name))


def has(config: dict, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(config, dict) or key not in config:
            return False
        config = config[key]
    return True


def changed(config: dict, name: str, value) -> dict:
    result = section = copy.deepcopy(config)
    *path, last = name.split(".")
    for key in path:
        section = section.setdefault(key, {})
    section[last] = value
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_of_every_recipe_has_a_range_and_is_in_it(name):
    assert [key for key, _ in parse.settings(CONFIGS[name]) if parse.kind_of(key) is None] == []
    assert parse.checked(CONFIGS[name]) == CONFIGS[name]


@pytest.mark.parametrize("name", sorted(parse.RANGES))
def test_what_is_out_of_range_is_one_line_that_names_key_value_and_range(name):
    kind, concrete = parse.RANGES[name], name.replace("*", "some_name")
    config = of_setting(name)
    assert wrong(kind)
    for value in wrong(kind):
        message = user_error(parse.checked, changed(config, concrete, value))
        assert message.startswith(f"config.{concrete}={parse.shown(value)}: give ") and kind.words in message
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            _same_from_the_command_line(config, concrete, value, kind)


def _same_from_the_command_line(config: dict, name: str, value, kind: kinds.Kind) -> None:
    """A text that stands for a wrong value is refused by the same words, if it stands for no right one."""
    try:
        parsed = recipes.parsed(name, str(value), None)
    except UserError as error:
        assert f"config.{name}={value}: give {kind.words}" in str(error)
        return
    if not kind.holds(parsed):
        assert f"give {kind.words}" in user_error(parse.checked, changed(config, name, parsed))


def test_a_number_that_no_float_is_is_refused_without_all_its_digits():
    for name, words in (("train.epochs", "; a finite one"), ("data.batch_size", f"; {2**31 - 1} at most")):
        for huge in (HUGE, 10**5000):  # Python writes none of more than 4,300 digits
            message = user_error(parse.checked, changed({}, name, huge))
            assert message.startswith(f"config.{name}=") and message.endswith(words) and len(message) < 300
    assert user_error(parse.checked, changed({}, "data.batch_size", 2**31)).endswith("; 2147483647 at most")
    assert parse.parse(changed({}, "train.log_every", 2**31 - 1)).train.log_every == 2**31 - 1
    assert type(parse.parse(changed({}, "optim.learning_rate", 10**30)).optim.learning_rate) is float


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_command_line_writes_every_default_as_help_shows_it(name):
    assert recipes.parsed(name, manual._written(ALL[name]), ALL[name]) == ALL[name]


def test_choices_are_those_of_the_parts():
    """The table names them again, because it is read before JAX is imported."""
    for name, known in {
        "model.fusion": {*registry.FUSIONS, AS_THEY_ARE}, "model.backbone": registry.BACKBONES,
        "model.content_score": registry.SCORES,
        "model.backbone_settings.attention_score": registry.SCORES, "model.retrieval": registry.RETRIEVALS,
        "model.loss": registry.LOSSES,
    }.items():  # fmt: skip
        assert set(parse.RANGES[name].names) == set(known), name
    for name, known in {"content_parts": CONTENT_PARTS, "history_modules": HISTORY_MODULES}.items():
        assert set(parse.RANGES[f"model.{name}"].of.names) == set(known)
    assert parse.RANGES["model.content_aggregator"].names == (*AGGREGATORS,)


def test_a_section_is_no_setting_and_a_setting_no_section():
    config = CONFIGS["em3_synthetic.py:"]
    assert "config.train=3: is a section; set its keys" in user_error(parse.checked, config | {"train": 3})
    config = recipes.load(str(ROOT / "configs" / "em3_synthetic.py"), "")
    assert "config.model.cic: is a section; set its keys: config.model.cic.id_fields, " in user_error(
        recipes.with_options, config, {"model.cic": "3"}
    )
    assert "config.seed: is a setting, not a section" in user_error(recipes.with_options, config, {"seed.x": "3"})


def test_homes_are_expanded_wherever_a_setting_is_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    base = CONFIGS["lemur.py:"] | {"stream": CONFIGS["online.py:"]["stream"]}
    names = [name for name, kind in parse.RANGES.items() if isinstance(kind, kinds.Folder)]
    assert {
        "data.root",
        "train.init_from",
        "train.compilation_cache",
        "model.encoders.*",
        "stream.follow",
        "stream.publish",
    } == set(names)
    for name in (name.replace("*", "text") for name in names):
        found = dict(parse.settings(parse.checked(changed(base, name, "~/x"))))
        assert found[name] == "/home/somebody/x"
        message = user_error(parse.checked, changed(base, name, "gs://bucket/x"))
        assert message.startswith(f"config.{name}: gs://bucket/x: ") and "mount the bucket" in message


# What a config leaves out, and parts of the user's own.


def test_settings_of_a_retrieval_model_are_those_of_the_model_that_is_named():
    found = parse.parse({"task": "retrieval", "model": {"retrieval": "bpr"}})
    assert found.model.retrieval_settings == of_retrieval.Bpr()
    found = parse.parse({"task": "retrieval", "model": {"retrieval_settings": {"width": 8}}})
    assert found.model.retrieval_settings == of_retrieval.Em3(width=8)
    config = CONFIGS["retrieval.py:em3"]
    message = user_error(parse.parse, changed(config, "model.retrieval", "bpr"))
    assert "unknown key of 'bpr'; known: l2, width; a recipe of its own is --config=configs/retrieval.py:bpr" in message


def test_settings_of_a_model_of_ones_own_keep_their_range_where_it_is_known():
    model = {"retrieval": "mine:Model", "retrieval_settings": {"sizes": [3, [4]], "inside": {"a": [1]}, "width": 8}}
    found = parse.parse({"task": "retrieval", "model": model})
    assert found.model.retrieval_settings == {"sizes": (3, (4,)), "inside": {"a": (1,)}, "width": 8}
    assert parse.parse(parse.plain(found)) == found
    assert parse.parse({"task": "retrieval", "model": {"retrieval": "mine:Model"}}).model.retrieval_settings == {}
    for wrong, message in (
        ({"l2": -0.1}, "retrieval_settings.l2=-0.1: give a number of 0 or more"),
        ({"width": "8"}, "retrieval_settings.width='8': give a whole number"),
        ({"modality_weights": {"image": -1.0}}, "modality_weights.image=-1.0: give a number"),
        ({"modality_weights": 3}, "modality_weights=3: is a section"),
        ({"fusion_settings": 3}, "fusion_settings=3: is a section"),
        (3, "retrieval_settings=3: is a section"),
    ):
        config = {"task": "retrieval", "model": model | {"retrieval_settings": wrong}}
        assert message in user_error(parse.parse, config)


def test_what_no_config_can_be_is_one_line():
    for wrong in ([1], None, 3, {3: 4}, {"data": {1: 2}}, {"task": ["ranking"]}, {"task": "zzz"}, {"data": None}):
        assert user_error(parse.parse, wrong).startswith("config")
    assert "config.seed=-4" in user_error(parse.parse, schema.Ranking(seed=-4))
    assert "layout: unknown key, one of task lemur; start" in user_error(parse.parse, {"model": {"layout": {}}})
    assert "task retrieval is not trained on a stream" in user_error(parse.parse, {"task": "retrieval", "stream": {}})
    wrong = CONFIGS["online.py:"] | {"stream": {"publish": "store", "publish_platforms": ("gpu",)}}
    assert "each cpu, cuda, tpu or rocm" in user_error(parse.parse, wrong)


@pytest.mark.parametrize("key", ["model.cnn.widths", "model.cnn.mlp", "eval.activity"])
def test_what_has_to_have_one_size_at_least_refuses_none(key):
    """A net of no stage and slices of no bound ended in a traceback."""
    name = "retrieval.py" if key == "eval.activity" else "pictures.py"
    config = recipes.load(str(ROOT / "configs" / name), "")
    recipes.change(config, key, ())
    assert user_error(lambda: parse.parse(config)).startswith(
        f"config.{key}=(): give values with commas between, at least 1 of them"
    )
