"""What the items of a dataset show: texts and image files, each once."""

import numpy as np
import pytest

from em3_jax.data import content
from em3_jax.data.content import Content
from tests import raw_items
from tests.conftest import user_error


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("items")
    raw_items.write_items(root)
    return raw_items.prepare(root, root / "data")


def shown(found: Content) -> list[list[str | None]]:
    """Item -> what its slots show."""
    return [[found.values[k] if k >= 0 else None for k in row] for row in found.index]


def test_each_text_is_there_once_and_blanks_are_none(dataset):
    found = content.texts(dataset, ("title", "tag"))
    titles = [raw_items.title(k).strip() or None for k in range(raw_items.ITEMS)]
    assert shown(found) == [[text, f"tag{k % 3}"] for k, text in enumerate(titles)]
    assert len(found.values) == len(set(found.values)) == len({*titles} - {None}) + 3


def test_joined_texts_leave_out_what_is_not_there(dataset):
    found = shown(content.texts(dataset, ("title", "tag"), join=". "))
    assert found[1] == [f"{raw_items.title(1)}. tag1"]
    assert found[raw_items.EMPTY_TITLE] == [f"tag{raw_items.EMPTY_TITLE % 3}"]


def test_all_text_columns_by_default(dataset):
    assert shown(content.texts(dataset, ())) == shown(content.texts(dataset, ("title",)))


def test_unknown_field_names_those_there_are(dataset):
    message = user_error(content.texts, dataset, ("titel",))
    assert "'titel'" in message and "title, tag" in message


def test_images_are_the_files_of_the_column(dataset):
    root = dataset.meta["image_root"]
    expected = [[f"{root}/photos/i{k}.png"] for k in range(raw_items.ITEMS)]
    expected[raw_items.NO_IMAGE] = [None]
    assert shown(content.images(dataset, frames=3)) == expected


@pytest.mark.parametrize(("frames", "expected"), [(1, [5]), (2, [2, 7]), (3, [1, 5, 8]), (10, list(range(10)))])
def test_frames_are_spread_over_a_folder(dataset, tmp_path, frames, expected):
    for k in range(10):  # frame10 comes after frame9, not after frame1
        raw_items.write_image(tmp_path / "i3" / f"frame{k + 1}.png", seed=k, size=(2, 2))
    (tmp_path / "i3" / "notes.txt").write_text("no image")
    raw_items.write_image(tmp_path / "i4.jpg", seed=0)
    found = shown(content.images(dataset, frames, tmp_path))
    assert found[3] == [str(tmp_path / "i3" / f"frame{k + 1}.png") for k in expected]
    assert found[4] == [str(tmp_path / "i4.jpg"), *[None] * (len(expected) - 1)]
    assert all(row == [None] * len(expected) for item, row in enumerate(found) if item not in (3, 4))


def test_folders_without_images(dataset, tmp_path):
    assert "--images" in user_error(content.images, dataset, 1, tmp_path)
    assert "no such folder" in user_error(content.images, dataset, 1, tmp_path / "nowhere")


def test_units_are_all_places_that_show_a_value():
    index = np.array([[0, 1], [-1, 0], [2, 0]], np.int32)
    units, rows = Content(["a", "b", "c", "d"], index).units_of(np.array([2, 0, 3]))
    assert sorted(zip(units.tolist(), rows.tolist(), strict=True)) == [(0, 1), (3, 1), (4, 0), (5, 1)]
