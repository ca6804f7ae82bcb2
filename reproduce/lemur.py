"""LEMUR's comparisons (its tables 2 to 4) as a list of runs, each with its cost beside its quality.

The numbers beside the rows are the paper's QAUC on Douyin Search: 0.64393 for the baseline, relative changes for the others.
There a group is a query; where a dataset has none, it is a user, and the metric is GAUC.
"""

from em3_jax.core.errors import UserError, nearest
from em3_jax.trials.runs import PlannedRun
from reproduce.tables import Group, Row, Table

BASELINE = 0.64393
LEMUR_GAIN = 0.81  # % of the baseline's QAUC

_CONTRAST = PlannedRun("contrast_only", "contrast_only", settings_of="")
_ABLATIONS = (  # label, name, changes, change in % of QAUC that the paper has
    ("stop-gradient: the click does not reach the encoder", "stop_gradient", {"model.ranking_gradient": False}, -0.31),
    ("no gradient through histories", "no_history_gradient", {"model.history_gradient": False}, None),
    ("no short sequence", "no_short", {"model.history_modules": ("long", "similarity")}, -0.09),
    ("no long sequence", "no_long", {"model.history_modules": ("short", "similarity")}, -0.25),
    ("no similarity module", "no_similarity", {"model.history_modules": ("short", "long")}, -0.12),
    ("no SQDC", "no_sqdc", {"model.sqdc.weight": 0.0}, -0.17),
    ("no session mask", "no_mask", {"model.sqdc.mask_group": False}, -0.10),
    ("with CIC", "with_cic", {"model.cic.weight": 0.1}, -0.02),
    ("every history item encoded, no bank", "encode_all", {"model.encode": "all"}, None),
)
_SAMPLING = ((100, 20, 0.78), (20, 20, 0.76), (10, 10, 0.75))  # p, q, gain


def _paper(gain: float | None) -> float | None:
    return None if gain is None else round(BASELINE * (1 + gain / 100), 5)


def table(only: tuple[str, ...] = ()) -> Table:
    """The table; its runs are variants of configs/lemur.py.

    Args:
      only: names of the runs whose rows are wanted, beside the baseline; none: all.

    Raises:
      UserError: there is no row of that name.
    """
    two_stage = PlannedRun("two_stage", "frozen", init_from=_CONTRAST.name, settings_of="two_stage")
    lemur = PlannedRun("lemur", settings_of="lemur")
    rows = [
        Row("baseline (IDs alone)", "id_only", BASELINE),
        Row("two-stage: trained on SQDC, then frozen", two_stage.name, 0.64470),
        Row("LEMUR", lemur.name, 0.64914),
    ]
    runs = [PlannedRun("id_only", "id_only", settings_of="id_only"), _CONTRAST, two_stage, lemur]
    for label, name, changes, change in _ABLATIONS:
        runs.append(PlannedRun(name, "", changes, settings_of=lemur.name))
        rows.append(Row(label, name, _paper(change and LEMUR_GAIN + change)))
    for p, q, gain in _SAMPLING:
        changes = {"model.forward_percent": float(p), "model.backward_percent": float(q)}
        run = PlannedRun(f"p{p}_q{q}", "", changes, settings_of=lemur.name)
        runs.append(run)
        rows.append(Row(f"p {p} %, q {q} % of the candidates", run.name, _paper(gain)))
    names = [row.run for row in rows]
    for name in only:
        if name not in names:
            raise UserError(f"--models {name}: no such row; {nearest(name, names)}")
    rows = [row for row in rows if not only or row.run in only or row is rows[0]]
    needed = {row.run for row in rows} | {run.init_from for run in runs if run.name in only or not only}
    runs = [run for run in runs if run.name in needed]
    notes = (
        "FLOPs and temporary memory are those of the compiled training step; time is the median of the run's log windows. "
        "p: share of the distinct candidates that are encoded in a step, q: that take a gradient. "
        "All runs may take as many epochs, with the same patience, and read histories of the same length; the "
        "first of two stages keeps the step whose T s(q, d) orders validation best within users (GAUC).",
    )
    return Table("lemur", "LEMUR", (Group("", tuple(rows)),), {run.name: run for run in runs}, notes, metric="gauc")
