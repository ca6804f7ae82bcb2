"""The verdict in sentences, made of what `conclude` found."""

from typing import Any

from em3_jax.core import terminal
from em3_jax.verdict.conclude import HARMS, NO_DIFFERENCE, PAYS
from em3_jax.verdict.ladder import FUSION, IDS, POPULARITY

MOST_OF = 0.9  # share of a gain that is "all of it"


def headline(found: dict[str, Any]) -> str:
    """The verdict in a line: "Content pays: +0.0120 AUC (0.0090 to 0.0150) over IDs"."""
    gain, label = found["gain"], label_of(found, found["best"])
    numbers = f"{gain['value']:+.4f} AUC ({gain['low']:+.4f} to {gain['high']:+.4f}) over IDs"
    if found["verdict"] == PAYS:
        return f"Content pays: {numbers}, by {label}."
    if found["verdict"] == HARMS:
        return f"Content harms: {numbers}, by {label}, the best of the ways on validation. Take IDs alone."
    return f"No difference: {numbers}, by {label}, the best of the ways on validation. Take IDs alone."


def sentences(found: dict[str, Any]) -> list[str]:
    """What else there is to say: where the gain is, what a cheaper way gets, what more data would do."""
    result = []
    if found["verdict"] == PAYS:
        result += [_where(found), _cheaper(found), _passes(found), *_modalities(found)]
    if found["verdict"] != HARMS:
        result += [_more(found)]
    return [sentence for sentence in result if sentence]


def untold(found: dict[str, Any]) -> list[str]:
    """What the verdict could not tell."""
    result, slices = [], {row["name"]: row for row in found["slices"]}
    if "items never shown" not in slices:
        result.append(
            "Items that training never shows: the test split has none, so what content does for them is not there."
        )
    if "new users" not in slices:
        result.append("New users: the test split has none.")
    if found["top"] < 1:
        share = f"{100 * found['top']:.3g} %"
        result.append(f"All of the training rows: the budget held {share} of them; what is said here is said of these.")
    if found["gain"]["value"] and found["verdict"] == NO_DIFFERENCE:
        result.append(
            f"A gain smaller than {max(found['gain']['high'], 0):.4f} AUC: {_split(found, 'test')['rows']:,} test rows do not "
            "show it."
        )
    rates = {row["name"]: row["auc"] for row in found["ladder"]}
    if rates.get(POPULARITY, 0.0) > rates[IDS]:
        said = f"Popularity of all training rows has {rates[POPULARITY]:.4f} AUC, above IDs alone at {rates[IDS]:.4f}"
        why = (
            "the budget held a part of the rows" if found["top"] < 1 else "the model has not learnt what a count tells"
        )
        result.append(f"What a model that has learnt enough would say: {said}; {why}.")
    dropped = [row["label"] for row in found["ladder"] if row["share"] < found["top"]]
    if dropped:
        result.append(f"Whether {_list(dropped)} would catch up on all rows: they were left behind on part of them.")
    result.append(
        f"Other settings: IDs alone chose those of all rungs, among {len(found['settings'])}; ways that train content "
        "chose whether it learns slowly."
    )
    return result


def label_of(found: dict[str, Any], name: str) -> str:
    """What a rung is called."""
    return next(row["label"] for row in found["ladder"] if row["name"] == name)


def _where(found: dict[str, Any]) -> str:
    """Which items the gain is on: the fewest-shown ones that have nearly all of it."""
    rows = [row for row in found["slices"] if row["name"].startswith("items ")]
    if any(row["share_of_gain"] is None for row in rows):
        return ""
    gain, share = 0.0, 0.0
    for place, row in enumerate(rows):
        gain, share = gain + row["share_of_gain"], share + row["share_of_rows"]
        rest = rows[place + 1 :]
        if gain >= MOST_OF and rest and not any(r["gain"] and r["gain"]["low"] > 0 for r in rest):
            most = row["name"].removeprefix("items ")
            items = "never shown in training" if most == "never shown" else f"shown at most {most.split()[-1]} times"
            return f"All of it is on items {items} ({share:.0%} of the impressions)."
    parts = [f"{row['name'].removeprefix('items ')}: {row['share_of_gain']:.0%} of it" for row in rows]
    return f"It is spread over items by their training showings: {', '.join(parts)}."


def _cheaper(found: dict[str, Any]) -> str:
    cosines = found["cosines"]
    if not cosines:
        return ""
    at = "" if cosines["at"] == found["top"] else f", on {100 * cosines['at']:.3g} % of the rows"
    return f"Plain cosines get {max(cosines['share_of_gain'], 0):.0%} of it{at}."


def _more(found: dict[str, Any]) -> str:
    predicted = found["forecast"]
    if not predicted:
        return ""
    return (
        f"With {predicted['times']:g} times the data expect {predicted['value']:+.4f} "
        f"({predicted['low']:+.4f} to {predicted['high']:+.4f})."
    )


def _passes(found: dict[str, Any]) -> str:
    rows = found["fusion_passes_at_rows"]
    if not rows:
        return ""
    have = _split(found, "train")["rows"]
    return (
        f"{label_of(found, FUSION)} needs about {_round(rows):,} training rows to pass {label_of(found, found['best'])}; "
        f"you have {have:,}."
    )


def _modalities(found: dict[str, Any]) -> list[str]:
    """Which feature set carries the gain, by permutation."""
    parts = found.get("importance") or []
    if len(parts) < 2:
        return []
    carries = [row["name"] for row in parts if row["low"] > 0]
    nothing = [row["name"] for row in parts if row["low"] <= 0]
    said = []
    if carries:
        said.append(f"{_list(carries)} {'carries' if len(carries) == 1 else 'carry'} it")
    if nothing:
        said.append(f"{_list(nothing)} add{'s' * (len(nothing) == 1)} nothing that is seen")
    return [f"Of the feature sets, {', '.join(said)} (each permuted among the items)."]


def _split(found: dict[str, Any], name: str) -> dict[str, Any]:
    return found["data"]["splits"][name]


def _round(rows: int) -> int:
    """To two digits: more is not known."""
    places = max(len(str(rows)) - 2, 0)
    return round(rows, -places)


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def text(found: dict[str, Any]) -> str:
    """What the command prints: the verdict, and the ladder as a table."""
    lines, rows = [terminal.paragraph(one) for one in (headline(found), *sentences(found))], []
    header = ["rung", "rows", "seeds", "AUC", "over IDs", "95 %", "GAUC", "GFLOP a step"]
    for row in found["ladder"]:
        gain, cost = row["gain"], row["gigaflops"]
        cells = [row["label"], f"{row['share']:.0%}", f"{row['seeds']}", f"{row['auc']:.4f}"]
        cells += [f"{gain['value']:+.4f}", f"{gain['low']:+.4f} to {gain['high']:+.4f}"] if gain else ["", ""]
        rows.append([*cells, f"{row['gauc']:.4f}", f"{cost:.3f}" if cost is not None else ""])
    lines += ["", terminal.table(header, rows, joined=[header.index("95 %")])]
    if any(row["share"] < found["top"] for row in found["ladder"]):
        fewer = "Rungs of fewer rows are against IDs of as few, not to be compared with the others."
        lines.append(terminal.paragraph(fewer))
    lines += ["", "Not told:", *(terminal.paragraph(f"- {one}") for one in untold(found))]
    return "\n".join(lines)
