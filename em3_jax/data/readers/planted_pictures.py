"""Planted pictures: what pixels show of an item's latent vector, plainly or by the item's category.

**plain** shows the whole vector all over: side x side pixels, 127.5 + CONTRAST sum_j y_j B_j +
NOISE e, with B_j a smooth random pattern for each latent dimension and e ~ N(0, 1).

**category** needs an encoder that looks for shapes, knows where to look, and is told what is
sold. Letters: k latent dimensions, A alphabets, y = w * z what a picture shows of the content z
(see `synthetic`). There are A alphabets of k motifs, B_aj, each CELL x CELL pixels of blobs of 2.
Each of the categories has one of them, a(c), by chance and in equal parts. A picture is laid out
in cells of that size:

    half of the cells (left, right, upper or lower by chance) are the subject, the others clutter
    each shows one motif of each alphabet, the j of each in equal parts and in random order
    subject   pixel = 127.5          + STAMP sum_a t_aj(a) B_aj(a)                    + SPECKS e
    clutter   pixel = 127.5 +- GRAIN + STAMP CLUTTER sum_a g_a / sqrt(k) B_aj(a)      + SPECKS e

with g, e ~ N(0, 1); then it is moved by 0 to CELL - 1 pixels up and to the left, around the border,
and cut to 0 .. 255. In the alphabet of the item's own category t = y; in the others t = w * z' of a
false content z', uniform on the sphere. So a picture shows A contents, all alike, and only the
category says which one is true. Motifs are orthogonal, have the mean 0 (a picture's mean colour
says nothing) and are the same from left to right (a mirrored picture means the same). The sign of
GRAIN changes from pixel to pixel, as on a chessboard: by it clutter is told from the subject.
"""

from typing import Any

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.readers.planted_world import directions

SIDES = {"plain": 16, "category": 32}
CONTRAST, NOISE = 60.0, 30.0
ALPHABETS, CELL, STAMP, SPECKS = 2, 8, 120.0, 15.0
CLUTTER, GRAIN = 0.5, 40.0
_EVEN = (CELL // 2) * (CELL // 4) * 3 - 3  # dimensions of motifs that are even and of mean 0
_CHUNK = 1 << 12

Pictures = tuple[np.ndarray, np.ndarray, dict[str, Any]]
"""Pixels [I, 1, side * side * 3] u8, mask [I, 1] bool, manifest."""


def side_of(kind: str, side: int, latent: int) -> int:
    """Rows and columns of the pictures, in pixels: as asked for, or those of their kind for 0.

    Raises:
      UserError: the kind is unknown, the side no multiple of 8 from 16 to 256, or the pictures have
        fewer places than there are latent dimensions.
    """
    if kind not in SIDES:
        raise UserError(f"--pictures '{kind}' is unknown; give {' or '.join(SIDES)}")
    side = side or SIDES[kind]
    if side % CELL or not 2 * CELL <= side <= 256:
        raise UserError(f"--picture-side is {side}; give a multiple of {CELL} from 16 to 256, in pixels")
    if kind == "plain":
        return side
    if (side // CELL) % 2:
        raise UserError(f"--picture-side is {side}; pictures by category have halves: a multiple of 16")
    places, most = (side // CELL) ** 2 // 2, _EVEN // ALPHABETS
    if latent > most:
        raise UserError(f"--latent is {latent}, and pictures by category show {most} dimensions at most")
    if latent > places:
        raise UserError(
            f"--latent is {latent}, and pictures by category of {side} pixels show {places} dimensions "
            "at most; give a larger --picture-side"
        )
    return side


def plain(random: np.random.Generator, shown: np.ndarray, side: int) -> Pictures:
    """Pictures that show y all over.

    Args:
      shown: [I, k] f32, y of each item.
      side: of the pictures, in pixels.
    """
    latent = shown.shape[1]
    coarse = random.standard_normal((latent, side // 4, side // 4, 3), dtype=np.float32)
    pattern = coarse.repeat(4, axis=1).repeat(4, axis=2).reshape(latent, -1)
    result = np.empty((len(shown), 1, side * side * 3), np.uint8)
    for start in range(0, len(shown), _CHUNK):
        part = shown[start : start + _CHUNK]
        noise = random.standard_normal((len(part), pattern.shape[1]), dtype=np.float32)
        pixels = 127.5 + CONTRAST * part @ pattern + NOISE * noise
        result[start : start + _CHUNK, 0] = np.clip(pixels, 0, 255)
    return _as_features(result, side, {})


def by_category(
    random: np.random.Generator, shown: np.ndarray, category: np.ndarray, categories: int, side: int
) -> Pictures:
    """Pictures of which the category says which motifs tell something.

    Args:
      shown: [I, k] f32, y of each item.
      category: [I] int, the number of its category, from 0.
      categories: how many there are.
      side: of the pictures, in pixels.
    """
    items, latent = shown.shape
    motif = motifs(random, ALPHABETS * latent).reshape(ALPHABETS, latent, CELL, CELL, 3)
    alphabet = random.permutation(np.arange(categories) % ALPHABETS)
    weight = np.sqrt((shown**2).mean(axis=0) * latent)  # about w
    result = np.empty((items, 1, side * side * 3), np.uint8)
    for start in range(0, items, _CHUNK):
        part = slice(start, start + _CHUNK)
        told = weight * directions(random, len(shown[part]) * ALPHABETS, latent)
        told = told.reshape(-1, ALPHABETS, latent)
        told[np.arange(len(told)), alphabet[category[part]]] = shown[part]
        pixels = _pictures(random, told, motif, side)
        result[part, 0] = np.clip(pixels, 0, 255).reshape(len(told), -1)
    return _as_features(result, side, {"pictures": "category"})


def motifs(random: np.random.Generator, count: int) -> np.ndarray:
    """[count, CELL, CELL, 3] f32: orthogonal, mean 0, mean square 1, the same when mirrored."""
    coarse = random.standard_normal((count, CELL // 2, CELL // 4, 3))
    coarse -= coarse.mean(axis=(1, 2), keepdims=True)  # of each colour
    even = np.concatenate([coarse, coarse[:, :, ::-1]], axis=2)
    flat = even.repeat(2, axis=1).repeat(2, axis=2).reshape(count, -1)
    orthogonal = np.linalg.qr(flat.T)[0].T * np.sqrt(flat.shape[1])
    return orthogonal.reshape(count, CELL, CELL, 3).astype(np.float32)


def _pictures(random: np.random.Generator, told: np.ndarray, motif: np.ndarray, side: int) -> np.ndarray:
    """[n, side, side, 3] f32 pixels.

    Args:
      told: [n, A, k] strengths of the motifs in the subject.
      motif: [A, k, CELL, CELL, 3].
    """
    items, _, latent = told.shape
    cells = side // CELL
    is_subject = _halves(random, items, cells)  # [n, cells, cells]
    order = np.tile(np.arange(cells * cells // 2) % latent, (items, 2, 1))
    grid = np.zeros((items, cells, cells, CELL, CELL, 3), np.float32)
    for one, strength in enumerate(told.swapaxes(0, 1)):
        which = random.permuted(order, axis=2)  # [n, subject and clutter, their cells]
        random_strength = random.standard_normal(which[:, 1].shape, dtype=np.float32)
        strengths = (np.take_along_axis(strength, which[:, 0], axis=1), CLUTTER / np.sqrt(latent) * random_strength)
        for half, there in enumerate((is_subject, ~is_subject)):
            stamps = motif[one, which[:, half].ravel()]
            grid[there] += strengths[half].reshape(-1, 1, 1, 1) * stamps
    pixels = 127.5 + STAMP * grid.swapaxes(2, 3).reshape(items, side, side, 3)
    clutter = ~is_subject.repeat(CELL, axis=1).repeat(CELL, axis=2)
    checks = (np.indices((side, side)).sum(axis=0) % 2 * 2 - 1) * GRAIN
    pixels += (clutter * checks)[..., None]
    pixels += SPECKS * random.standard_normal(pixels.shape, dtype=np.float32)
    moved = random.integers(0, CELL, (2, items, 1)) + np.arange(side)
    rows, columns = moved % side
    return pixels[np.arange(items)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _halves(random: np.random.Generator, items: int, cells: int) -> np.ndarray:
    """[n, cells, cells] bool: one of the four halves of each picture."""
    row, column = np.indices((cells, cells))
    half = np.stack([row * 2 < cells, row * 2 >= cells, column * 2 < cells, column * 2 >= cells])
    return half[random.integers(0, 4, items)]


def _as_features(pixels: np.ndarray, side: int, facts: dict[str, Any]) -> Pictures:
    manifest = {"encoder": "planted", "kind": "image", "raw": {"shape": [side, side, 3]}} | facts
    return pixels, np.ones((len(pixels), 1), bool), manifest
