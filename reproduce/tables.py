"""Tables 1-7 of the EM3 paper as lists of runs: each row is the dataset's config with a few keys changed.

Numbers beside the rows are the paper's own AUC, on Kuaishou's data (sections 4.2 and 4.3).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from em3_jax.config.registry import FUSIONS
from em3_jax.data.format import Dataset
from em3_jax.trials.runs import PlannedRun


class Row(NamedTuple):
    """A row of a table: what it is called, its run, and the table's metric in the paper if it is there."""

    label: str
    run: str
    paper: float | None = None


class Group(NamedTuple):
    """Rows that are compared with the first of them, the baseline."""

    name: str
    rows: tuple[Row, ...]


class Table(NamedTuple):
    """A table of the paper.

    Attributes:
      number, title: of the table.
      groups: one, or one a scenario.
      runs: all runs that it needs, by name.
      notes: what differs here from the paper.
      metric: that gains are counted in.
    """

    number: int | str
    title: str
    groups: tuple[Group, ...]
    runs: dict[str, PlannedRun]
    notes: tuple[str, ...] = ()
    metric: str = "auc"

    @property
    def file(self) -> str:
        """Stem of its files: "table3"."""
        return f"table{self.number}" if isinstance(self.number, int) else f"table_{self.number}"


NUMBERS = (1, 2, 3, 4, 5, 6, 7)
ID_ONLY = PlannedRun("id_only", "id_only", settings_of="id_only")
EM3 = PlannedRun("em3")
FROZEN = {"model.content": "pre_extracted", "model.cic.weight": 0.0}
BASELINE = Row("baseline (IDs alone)", "id_only", 0.7016)


def make(number: int, dataset: Dataset, data: Mapping[str, Any]) -> Table:
    """Table `number` for a dataset.

    Args:
      data: config.data of all runs.
    """
    return (_scenarios, _modalities, _fusions, _lora, _cic, _item_and_user, _splitting)[number - 1](dataset, data)


def _table(number: int, title: str, rows: list[Row], runs: list[PlannedRun], *notes: str) -> Table:
    return Table(number, title, (Group("", tuple(rows)),), {run.name: run for run in [ID_ONLY, *runs]}, notes)


def _scenarios(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    scenarios = [("CTR, one chronological pass (paper: e-com)", "online", 0.7803, 0.7823)]
    notes = ["CTR: label click, trained online style. CVR: label conversion, trained in epochs."]
    if "conversion" in dataset.meta.get("labels", {}):
        scenarios.append(("CVR, in epochs (paper: ad)", "conversion", 0.7016, 0.7033))
    else:
        notes.append("This dataset has one label: no CVR scenario.")
    groups, runs = [], {}
    for title, variant, baseline, em3 in scenarios:
        for name, argument in ((f"{variant}_id_only", f"{variant},id_only"), (f"{variant}_em3", variant)):
            runs[name] = PlannedRun(name, argument, settings_of=name)
        rows = (Row("baseline (IDs alone)", f"{variant}_id_only", baseline), Row("EM3", f"{variant}_em3", em3))
        groups.append(Group(title, rows))
    return Table(1, "Two scenarios", tuple(groups), runs, tuple(notes))


def _modalities(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    features = data["features"]
    frames = {name: dataset.features(name).tokens.shape[1] for name in features if name.isidentifier()}
    videos = [name for name in frames if name.startswith("image") and frames[name] > 1]
    first = {name: f"{name}[0]" if name in videos else name for name in features}  # the cover frame alone
    paper = {"image": 0.7024, "text": 0.7022}
    rows, runs = [BASELINE], []
    kind = lambda name: next((k for k in paper if name.startswith(k)), name)  # noqa: E731

    def add(label: str, names: tuple[str, ...], value: float | None) -> None:
        everything = names == tuple(features)
        run = (
            EM3
            if everything
            else PlannedRun("only_" + "_".join(names).replace("[0]", "_first"), "", {"data.features": names})
        )
        rows.append(Row(label, run.name, value))
        runs.append(run)

    for name in features:
        add(f"only {kind(name)}", (first[name],), paper.get(kind(name)))
    if len(features) > 1:
        both = " & ".join(map(kind, features))
        value = 0.7027 if sorted(map(kind, features)) == ["image", "text"] else None
        add(both, tuple(first.values()), value)
        if videos:
            add(both.replace("image", "video"), tuple(features), 0.7033 if value else None)
    notes = ("Image is the first frame, video all frames.",) if videos else ("No item has several frames: no video.",)
    if len(features) == 1:
        notes = (f"The config has one feature set ({features[0]}); add others to config.data.features for more rows.",)
    return _table(2, "Modalities", rows, runs, *notes)


def _fusions(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    paper = {"one_flow": 0.7030, "two_flow": 0.7029, "masked_fq_former": 0.7031, "fq_former": 0.7033}
    order = ("mean", "one_flow", "two_flow", "masked_fq_former", "fq_former")
    assert set(order) == set(FUSIONS)
    runs = {name: PlannedRun(f"fusion_{name}", "", {"model.fusion": name}) for name in order} | {"fq_former": EM3}
    rows = [BASELINE, *(Row(name, run.name, paper.get(name)) for name, run in runs.items())]
    return _table(3, "Fusion methods", rows, list(runs.values()), "`mean` is our control; the paper has none.")


def _lora(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    short = PlannedRun("length_20", "", {"data.history_length": 20})
    long = EM3 if data["history_length"] == 50 else PlannedRun("length_50", "", {"data.history_length": 50})
    lora = PlannedRun("length_50_lora", "lora", {"data.history_length": 50}, init_from=short.name)
    rows = [
        BASELINE._replace(paper=0.7803),
        Row("length 20 w/o LoRA", short.name, 0.7817),
        Row("length 50 w/ LoRA, from length 20", lora.name, 0.7823),
        Row("length 50 w/o LoRA", long.name),
    ]
    return _table(4, "LoRA", rows, [short, long, lora], "Length 50 without LoRA is our control; the paper has none.")


def _cic(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    without = PlannedRun("without_cic", "", {"model.cic.weight": 0.0})
    rows = [BASELINE, Row("w/o CIC", without.name, 0.7026), Row("w/ CIC", EM3.name, 0.7033)]
    return _table(5, "Content-ID contrast", rows, [without, EM3])


def _item_and_user(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    parts = [PlannedRun(f"only_{part}_part", "", {"model.content_parts": (part,)}) for part in ("item", "user")]
    nothing_to_train = {"model.content_parts": ("similarity",), "optim.multipliers": ()}
    similarity = PlannedRun("only_similarity", "", FROZEN | nothing_to_train)
    everything = PlannedRun("all_parts", "", {"model.content_parts": ("item", "user", "similarity")})
    rows = [
        BASELINE,
        Row("only item", parts[0].name, 0.7021),
        Row("only user", parts[1].name, 0.7024),
        Row("item & user", EM3.name, 0.7033),
        Row("only similarity", similarity.name),
        Row("item & user & similarity", everything.name),
    ]
    note = (
        "Similarity, the mean and largest cosine of the candidate's vectors with the history's, is our control; the paper has "
        "none. Alone it stands beside IDs, without fusion or CIC."
    )
    return _table(6, "Item and user features", rows, [*parts, EM3, similarity, everything], note)


def _splitting(dataset: Dataset, data: Mapping[str, Any]) -> Table:
    pretraining = PlannedRun("pretraining", "pretraining", settings_of="")
    pe = PlannedRun("pe", "", FROZEN, vectors_of=pretraining.name)
    task_specific = PlannedRun("task_specific_pe", "", FROZEN, vectors_of=EM3.name)
    rows = [
        BASELINE,
        Row("PE", pe.name, 0.7021),
        Row("task-specific PE", task_specific.name, 0.7029),
        Row("E2E", EM3.name, 0.7033),
    ]
    note = (
        "PE: vectors of the fusion module trained on the catalogue alone. Task-specific PE: vectors of the E2E run of the same "
        "seed. Both are read frozen, by a fresh ranking model, without CIC."
    )
    return _table(7, "Splitting the gains", rows, [pretraining, pe, EM3, task_specific], note)
