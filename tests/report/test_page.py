"""The page of an analysis in a browser: search, neighbours with pictures, spaces, the map; alone, and safe from texts."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from em3_jax.analysis import command as analyze
from em3_jax.analysis.page import Look, as_script_data
from em3_jax.analysis.similarity import Choice
from em3_jax.analysis.spaces import BASELINE_IDS, CONTENT, FROZEN, IDS, Analysed, Space
from em3_jax.data.readers.table import table
from tests import contrast
from tests.conftest import watched

ITEMS, NEVER_SHOWN, WITHOUT_PICTURE = 30, 29, 28
HOSTILE = {
    0: "</script><script>alert('title')</script>",
    1: '<img src=x onerror=alert(1)> & "quotes" <!--',
    2: "Amélie 映画 {{data}}",
}
NAMES = {CONTENT: "EM3 content", FROZEN: "Frozen content", IDS: "EM3 IDs", BASELINE_IDS: "Baseline IDs"}


def title(item: int) -> str:
    return HOSTILE.get(item, f"Film number {item}")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Items with titles, a genre and posters; one without a poster, one that nobody was shown."""
    folder = tmp_path_factory.mktemp("films")
    rows = [
        {"item": f"f{k}", "title": title(k), "genre": ["noir", "<b>bold</b>"][k % 2], "poster": f"f{k}.png"}
        for k in range(ITEMS)
    ]
    for k, row in enumerate(rows):
        if k == WITHOUT_PICTURE:
            row["poster"] = ""
        else:
            Image.new("RGB", (60, 90), (8 * k, 255 - 8 * k, 90)).save(folder / row["poster"])
    clicks = [
        {"user": u, "item": f"f{(u * 7 + k) % NEVER_SHOWN}", "label": k % 2, "time": 10 * u + k}
        for u in range(40)
        for k in range(3)
    ]
    for name, lines in (("items", rows), ("clicks", clicks)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    return table(
        folder / "data", interactions=folder / "clicks.csv", items=folder / "items.csv",
        columns={"user": "user", "item": "item", "time": "time"},
        item_fields=("genre",), item_text=("title",), item_image="poster",
    )  # fmt: skip


@pytest.fixture(scope="module")
def analysed(films) -> Analysed:
    """Embeddings in which nearness is known: each space is a ring of its own, with neighbours so many items apart."""
    spaces, ids = {}, films.item_table.column("id").to_pylist()
    number = np.array([int(name[1:]) for name in ids])
    for apart, (key, name) in enumerate(NAMES.items(), 1):
        angle = 2 * np.pi * (number * pow([1, 7, 11, 13][apart - 1], -1, ITEMS) % ITEMS) / ITEMS
        present = number != NEVER_SHOWN if key in (IDS, BASELINE_IDS) else np.ones(ITEMS, bool)
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        spaces[key] = Space(key, name, "what is near is near", ring, present)
    shown = np.where(number == NEVER_SHOWN, 0, 5 + number)
    return Analysed(
        films, "EM3", {"model": "a, step 1", "baseline": "b, step 1"}, spaces, ["image"], None, shown, shown // 2
    )


@pytest.fixture(scope="module")
def page(analysed, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    analyze.analyze(analysed, out, Choice(), Look(items=(5,), title="title"))
    return out / "index.html"


def names(view) -> list[str]:
    return view.locator("#neighbours .name").all_inner_texts()


def ring(item: int, apart: int) -> set[str]:
    """Titles of the two items nearest in a ring."""
    return {title((item + apart) % ITEMS), title((item - apart) % ITEMS)}


def open_page(browser, page, fragment="", width=1280):
    view, requests, complaints = watched(browser, viewport={"width": width, "height": 900})
    view.goto(f"{page.as_uri()}{fragment}")
    return view, requests, complaints


def test_search_neighbours_and_spaces(browser, page, analysed):
    view, requests, complaints = open_page(browser, page)
    asked_for = analysed.dataset.item_table.column("id").to_pylist()[5]
    assert view.locator("#item h3").inner_text() == title(int(asked_for[1:])), "it opens with the item asked for"

    view.keyboard.press("/")
    view.keyboard.type("number 14")
    view.locator("#found li[role=option]").first.wait_for()
    assert view.locator("#found li[role=option] b").all_inner_texts() == ["Film number 14"]
    view.keyboard.press("Enter")
    assert view.locator("#item h3").inner_text() == "Film number 14" and "#item=f14" in view.url

    assert len(names(view)) == 12 and set(names(view)[:2]) == ring(14, 1)
    pictures = view.locator("#neighbours img")
    assert pictures.count() == 12
    assert pictures.evaluate_all("images => Promise.all(images.map(i => i.decode())).then(() => true)")
    score = float(view.locator("#neighbours .score").first.inner_text())
    assert score == pytest.approx(np.cos(2 * np.pi / ITEMS), abs=0.006)

    for apart, (key, name) in zip((7, 11, 13), list(NAMES.items())[1:], strict=True):
        view.locator(f"#spaces label.{key}").click()
        assert set(names(view)[:2]) == ring(14, apart), name
        assert view.locator("#map-space").inner_text() == name and f"space={key}" in view.url
    view.locator("#spaces label.all").click()
    rows = view.locator("#neighbours .row")
    assert rows.locator("h3").all_inner_texts() == list(NAMES.values())
    first = rows.nth(0).locator("button").first
    going_to = first.get_attribute("title")
    first.click()
    assert view.locator("#item h3").inner_text() == going_to
    view.go_back()
    assert view.locator("#item h3").inner_text() == "Film number 14"
    assert not complaints
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]


def test_texts_of_the_data_are_texts(browser, page):
    view, _, complaints = open_page(browser, page)
    for item, text in HOSTILE.items():
        view.locator("#search").fill(f"f{item}")
        assert view.locator("#found li b").first.inner_text() == text
        view.locator("#search").press("Enter")
        assert view.locator("#item h3").inner_text() == text
    assert view.locator("#item dd, #legend span, .tile .sub b").get_by_text("<b>bold</b>").count() > 0
    view.locator("#search").fill("amelie")
    assert view.locator("#found li b").first.inner_text() == HOSTILE[2], "accents need not be typed"
    view.locator("#search").fill("nothing <i>like</i> it")
    assert "No title here holds" in view.locator("#found").inner_text() and view.locator("#found i").count() == 0
    assert not complaints


def test_items_without_a_place_or_a_picture(browser, page):
    view, _, complaints = open_page(browser, page, f"#item=f{NEVER_SHOWN}&space={IDS}")
    assert "never shown in training" in view.locator("#item").inner_text()
    assert "Training never showed this item" in view.locator("#neighbours").inner_text()
    view.locator(f"#spaces label.{CONTENT}").click()
    assert set(names(view)[:2]) == ring(NEVER_SHOWN, 1)
    tile = view.locator(f'#neighbours button[title="{title(WITHOUT_PICTURE)}"] .shot')
    assert tile.locator("img").count() == 0 and tile.inner_text() == "FN"
    assert not complaints


def test_the_map(browser, page):
    view, _, complaints = open_page(browser, page, "#item=f12")
    canvas = view.locator("#map")
    canvas.scroll_into_view_if_needed()
    view.wait_for_timeout(800)  # until the points have come to rest
    place = view.evaluate("map.where(data.ids.indexOf('f14'))")
    view.mouse.move(*place)
    assert "Film number 14" in view.locator("#tip").inner_text()
    view.mouse.click(*place)
    assert view.locator("#item h3").inner_text() == "Film number 14"
    entries = view.locator("#legend button span").all_inner_texts()
    assert sorted(entries) == ["<b>bold</b>", "noir"]
    before = canvas.screenshot()
    view.locator("#legend button").first.click()
    assert view.locator("#legend button").first.get_attribute("aria-pressed") == "true"
    view.wait_for_timeout(100)
    assert canvas.screenshot() != before
    view.locator("#field").select_option(label="training clicks")
    assert view.locator("#legend .ramp").count() == 1
    assert not complaints


def test_on_a_phone(browser, page):
    view, requests, complaints = open_page(browser, page, width=390)
    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    view.locator("#spaces label.all").click()
    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    assert view.locator("#neighbours img").first.is_visible() and not complaints
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]


def test_every_text_can_be_read(browser, page):
    view, _, _ = open_page(browser, page, "#item=f12")
    for scheme in ("light", "dark"):
        view.emulate_media(color_scheme=scheme)
        view.locator("#spaces label.all").click()
        assert contrast.faint(view) == {}
    # By script: the page forbids itself styles in its text.
    view.evaluate(
        "() => { const p = document.createElement('p'); p.textContent = 'too faint'; p.style.color = '#888';"
        " document.body.prepend(p); }"
    )
    view.emulate_media(color_scheme="light")
    assert list(contrast.faint(view)) == ["too faint"]


def test_the_page_forbids_itself_any_network(browser, page):
    """Should anything get past: the policy stops requests, and scripts that are not the page's own."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    view, requests, complaints = open_page(browser, page)
    outcome = view.evaluate("fetch('http://127.0.0.1:9/').then(() => 'asked', () => 'refused')")
    assert outcome == "refused" and any("Content Security Policy" in line for line in complaints)
    view.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert view.evaluate("window.ran === undefined")
    assert not [url for url in requests if url.startswith("http")]


def test_data_cannot_end_their_script():
    text = as_script_data({"a": "</script><!--<script>&", "b": float("nan")})
    assert not set("<>&") & set(text) and '"b":null' in text
