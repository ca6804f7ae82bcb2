"""em3 missing: who lacks a modality, what runs then give, and going on after a kill."""

import json
import os
import signal
import sys

import numpy as np
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.data.codes import read_codes
from em3_jax.data.format import open_dataset
from em3_jax.protocols import missing, overlay
from tests.conftest import user_error
from tests.protocols.conftest import config_of, write_codes_of, write_shop

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

RATES = (0.2, 0.6)


@pytest.fixture(scope="module")
def baseline(shop, tmp_path_factory):
    """A run on IDs alone, of the same seed."""
    config = config_of(shop, epochs=1.0)
    config.model.content, config.optim.multipliers = "none", ()
    folder = tmp_path_factory.mktemp("ids") / "ids"
    train.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("missing") / "out"


@pytest.fixture(scope="module")
def killed(trained, out):
    """What was finished when a SIGTERM came in the middle of the second run that --retrain trains."""
    patch, batches, trainings = pytest.MonkeyPatch(), train.batches, []

    def until_killed(*given, **options):
        trainings.append(1)
        for number, batch in enumerate(batches(*given, **options)):
            if len(trainings) == 2 and number == 10:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    patch.setattr(train, "batches", until_killed)
    with pytest.raises(KeyboardInterrupt):
        missing.missing([trained], ("image",), out, rates=RATES, retrain=True)
    patch.undo()
    assert len(trainings) == 2
    return {path: path.stat().st_mtime_ns for path in out.glob("runs/*/finished.json")}


@pytest.fixture(scope="module")
def report(trained, out, baseline, killed):
    """Of the same command, which goes on."""
    return missing.missing([trained], ("image",), out, rates=RATES, retrain=True, baselines=[baseline])


def test_a_killed_command_goes_on(out, killed, report):
    assert [path.parent.name for path in killed] == ["image-0.2-seed0"]
    assert {path.stat().st_mtime_ns for path in killed} == set(killed.values()), "what was finished is not made again"
    assert sorted(path.parent.name for path in out.glob("runs/*/finished.json")) == [
        "image-0.2-seed0",
        "image-0.6-seed0",
    ]
    log = (out / "runs" / "image-0.6-seed0" / "log.txt").read_text()
    assert "SIGTERM: saved step" in log and "resuming after step" in log


def test_at_rate_0_it_is_the_report_of_eval(trained, report):
    evaluated = evaluation.evaluate(trained, "test")["slices"]["all"]  # by programs compiled as these tests' are
    for label in (missing.TEST, missing.RETRAINED):
        point = report["curves"][label][0]
        assert point["x"] == 0.0 and point["n"] == report["rows"] == evaluated["n"]
        for metric in ("auc", "gauc", "logloss"):
            assert point[metric]["mean"] == evaluated[metric]
            assert point[metric]["high"] - point[metric]["mean"] > 1.9 * evaluated[f"{metric}_se"]


def test_missing_content_costs_and_training_so_is_another_run(report):
    as_trained, retrained = (report["curves"][label] for label in (missing.TEST, missing.RETRAINED))
    assert [point["x"] for point in as_trained] == [0.0, *RATES]
    last = as_trained[-1]
    assert last["auc"]["difference"]["high"] < 0 < last["logloss"]["difference"]["low"]
    assert last["auc"]["difference"]["value"] == pytest.approx(last["auc"]["mean"] - as_trained[0]["auc"]["mean"])
    assert last["items_without"] == pytest.approx(0.6, abs=0.15) and as_trained[0]["items_without"] == 0
    mended = retrained[-1]["auc"]["mended"]
    assert mended["value"] == pytest.approx(retrained[-1]["auc"]["mean"] - last["auc"]["mean"]) != 0
    assert mended["low"] < mended["value"] < mended["high"] and "mended" not in last["auc"]
    floor = report["curves"][missing.FLOOR]
    assert len({point["auc"]["mean"] for point in floor}) == 1
    assert last["auc"]["above"]["value"] == pytest.approx(last["auc"]["mean"] - floor[0]["auc"]["mean"])


def test_items_are_nested_and_nothing_else_changes(shop, trained, out, report):
    gone = {}
    for rate in RATES:
        thinned = open_dataset(out / "data" / f"image-{rate:g}")
        assert thinned.meta == shop.meta and (thinned.root / "features" / "image" / "tokens.npy").is_symlink()
        gone[rate] = ~thinned.features("image").mask.any(axis=1)
        np.testing.assert_array_equal(gone[rate], overlay.drawn(shop, rate, 0))
        np.testing.assert_array_equal(thinned.features("image").tokens, shop.features("image").tokens)
        assert thinned.features("text").manifest == shop.features("text").manifest
        assert thinned.features("image").manifest["hash"] != shop.features("image").manifest["hash"]
        assert thinned.features("image").manifest["counts"]["items_with_content"] == (~gone[rate]).sum()
        trained_so = json.loads((out / "runs" / f"image-{rate:g}-seed0" / "run.json").read_text())
        assert trained_so["features"]["image"] == thinned.features("image").manifest["hash"]
    assert 0 < gone[0.2].sum() < gone[0.6].sum() and (gone[0.2] <= gone[0.6]).all()
    assert not overlay.drawn(shop, 0.0, 0).any() and overlay.drawn(shop, 1.0, 0).all()
    assert (overlay.drawn(shop, 0.6, 1) != gone[0.6]).any()


def test_the_page_names_n_and_intervals(trained, tmp_path, monkeypatch, capsys):
    command = [
        "em3",
        "--workdir",
        str(trained),
        "--modality",
        "image,text",
        "--rates",
        "1",
        "--out",
        str(tmp_path / "rep"),
    ]
    monkeypatch.setattr(sys, "argv", command)
    missing.main()
    told = json.loads((tmp_path / "rep" / "missing.json").read_text())
    last = told["curves"][missing.TEST][-1]
    assert last["items_without"] == last["rows_without"] == 1.0
    interval = f"{last['auc']['difference']['low']:+.4f} to {last['auc']['difference']['high']:+.4f}"
    texts = [(tmp_path / "rep" / f"missing.{ending}").read_text() for ending in ("md", "html")]
    for text in (capsys.readouterr().out, *texts):
        assert f"n = {told['rows']:,} rows" in " ".join(text.split()) and interval in text
    assert "missing.png" in texts[0] and (tmp_path / "rep" / "missing.png").read_bytes().startswith(b"\x89PNG")


def test_codes_made_of_what_is_missing_are_refused(tmp_path):
    dataset = write_shop(tmp_path / "shop", "0.6,0.1,0.3")
    write_codes_of(dataset, "image[0]")
    said = user_error(overlay.check_codes, dataset, ("sid",), ("image", "text"))
    assert said.startswith("--modality image: the run reads codes 'sid', made of it, which would still tell it")
    overlay.check_codes(dataset, ("sid",), ("text",))
    thinned = open_dataset(overlay.without(dataset, ("text",), 0.5, 0, tmp_path / "thinned"))
    assert read_codes(thinned, "sid").manifest == read_codes(dataset, "sid").manifest


def test_errors_are_one_line(shop, trained, baseline, out, report, tmp_path):
    def said(*given, **options):
        return user_error(lambda: missing.missing(*given, **options))

    assert "--modality images: " in said([trained], ("images",), tmp_path) and not list(tmp_path.iterdir())
    assert "did you mean 'image'?" in said([trained], ("images",), tmp_path)
    for rate in (-0.1, 1.5):
        assert f"--rates {rate:g}: give shares" in said([trained], ("image",), tmp_path, rates=[rate])
    assert "two runs have the same seed" in said([trained, trained], ("image",), tmp_path)
    assert "is not of the config and data of" in said([trained, baseline], ("image",), tmp_path)
    assert "reads no such content" in said([baseline], ("image",), tmp_path)
    assert "seed was 0 and is 1" in said([trained], ("image",), out, seed=1)
    other = tmp_path / "other"
    runs_root = other / "runs" / "image-0.2-seed0"
    runs_root.mkdir(parents=True)
    (runs_root / "run.json").write_text((baseline / "run.json").read_text())
    assert "made with another config" in said([trained], ("image",), other, rates=(0.2,), retrain=True)
