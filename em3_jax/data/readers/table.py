"""Anybody's interactions, items and users: CSV, TSV or Parquet, and a mapping that says which column is what.

    em3 prepare table --interactions clicks.parquet --items items.csv --users users.csv \\
        --columns user=uid,item=sku,time=ts --label "rating>=4" --item-fields brand,tags:multi --item-text title \\
        --item-image photo --user-fields city --context-fields device --event-fields rating \\
        --features image=image.npy --split 0.8,0.1,0.1 --out data/mine

Ids and field values have one form whatever the file (`core.values`): 5, 5.0 and "5.0" are the same, 007 is
another. Items and users come from their tables, in that order, or else from the interactions. The interactions are
sorted by time here; rows of equal time keep the order of the file.
"""

from pathlib import Path
from typing import Any

from em3_jax.core.errors import UserError
from em3_jax.data.format import SPLITS, Dataset
from em3_jax.data.readers import table_numbers as cut
from em3_jax.data.readers.delimited import TextFormat, check_format
from em3_jax.data.readers.files import nearest
from em3_jax.data.readers.negatives import BY
from em3_jax.data.readers.source import Source, Tables
from em3_jax.data.readers.splits import OF_FILES, Split, Whole, is_by_items, parse
from em3_jax.data.readers.table_clicks import Clicks, check_clicks
from em3_jax.data.readers.table_dataset import Files, brought
from em3_jax.data.readers.table_history import ORDERS
from em3_jax.data.readers.table_log import More
from em3_jax.data.readers.table_made import ENGINES, check_engine, made
from em3_jax.data.readers.table_numbers import BINS
from em3_jax.data.readers.table_numbers import Options as Cut
from em3_jax.data.readers.table_part import Multi, check_multi
from em3_jax.data.readers.table_reading import Asked, Names, Reading
from em3_jax.data.readers.table_times import AUTO, NO_TIMES, UNTIMED, Times, Untimed
from em3_jax.data.writer import DatasetWriter

ROLES = ("user", "item", "label", "time", "user_key", "item_key", "group", "history", "weight")


def table(
    out: str | Path,
    *,
    interactions: Tables,
    items: Tables | None = None,
    users: Tables | None = None,
    columns: dict[str, str] | None = None,
    label: str | None = None,
    labels: dict[str, str] | None = None,
    amounts: dict[str, str] | None = None,
    item_fields: tuple[str, ...] = (),
    item_text: tuple[str, ...] = (),
    item_image: str | None = None,
    image_root: str | Path | None = None,
    user_fields: tuple[str, ...] = (),
    context_fields: tuple[str, ...] = (),
    event_fields: tuple[str, ...] = (),
    item_numbers: tuple[str, ...] = (),
    user_numbers: tuple[str, ...] = (),
    context_numbers: tuple[str, ...] = (),
    event_numbers: tuple[str, ...] = (),
    number_bins: int = BINS,
    numbers_like: str = "",
    features: dict[str, str | Path] | None = None,
    separator: str = "|",
    max_values: int = 8,
    split: str = "0.8,0.1,0.1",
    events: str | None = None,
    events_table: Tables | None = None,
    history_fields: dict[str, str] | None = None,
    history_separator: str = "",
    history_order: str = ORDERS[0],
    negatives: int = 0,
    negatives_by: str = BY[0],
    seed: int = 0,
    as_retrieval: bool = False,
    drop_unknown: bool = False,
    untimed_histories: str = UNTIMED[0],
    time_unit: str = AUTO,
    time_format: str = "",
    in_order: bool = False,
    delimiter: str = "",
    quoting: str = "auto",
    encoding: str = "",
    header: bool | None = None,
    column_names: tuple[str, ...] = (),
    item_column_names: tuple[str, ...] = (),
    user_column_names: tuple[str, ...] = (),
    engine: str = ENGINES[0],
    spark: str = "",
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`, from tables.

    Args:
      interactions, items, users: files, .csv, .tsv, .txt or .parquet, text also as .gz, .zst, .bz2, .xz; a folder of
        parts, a pattern such as "parts/*.csv", or several with commas; also at addresses of buckets (s3://, gs://, az://,
        https://), which are fetched first. From Python also frames of pandas, Polars or Arrow.
      columns: role -> column, for the roles user, item, label, time of the interactions; a role not named is a column of
        that name. `item_key`, `user_key`: the id's column in the items and users file, where it is another. `history`: a
        column of the items that each row's user took before, as a list or text. `group`: a session, query or impression, by
        which GAUC is taken and LEMUR's contrast masked; the model does not read it. `weight`: numbers from 0 up, how much a
        row counts in the training loss.
      label: a rule such as "rating>=4", in place of a column of 0 and 1.
      labels: name=column or name=rule of further labels, such as buy=bought,long=seconds>=30, which runs learn with
        --config.data.label=<name>, or several at once with --config.model.heads.labels; a row without a value is not part of
        that label.
      amounts: name=column of further labels that are numbers from 0 up, such as dwell=seconds, which runs learn with
        --config.model.heads.labels and --config.model.heads.losses.<name>; a row without a value is not part of that label.
      item_fields, user_fields: categorical columns; `name:multi` for several values, a list or text with separators.
      item_text: columns of the items that hold texts.
      item_image: column of the items, path of an image or of a folder of frames; `name:multi` for several.
      image_root: what the paths are relative to; default the folder of the items file.
      context_fields: categorical columns of the interactions that describe the impression.
      event_fields: categorical columns of the interactions that describe them once they are history.
      item_numbers, user_numbers, context_numbers, event_numbers: columns of numbers, which become fields of ranges with
        about as many training rows each, and are kept as well; what is missing is a value of its own.
      number_bins: most ranges of such a field, 2 to 1000, beside what is missing.
      numbers_like: a dataset whose ranges and scale are taken over, as where the log has grown.
      features: name -> .npy file with one row an item, in the order of the items file; a row of zeros is missing.
      separator: between the values of a `:multi` column of texts.
      max_values: most values of a `:multi` field that are kept.
      split: three shares in time order; "items:0.7,0.1,0.2" or "users:0.8,0.1,0.1", by a hash of the
        seed and their ids, so that all rows of one are of one part; "items:<column>" or
        "users:<column>", a column of their file that says train, valid or test (or 0, 1, 2);
        "folds:5:0", items in so many parts by that hash, number 0 test and the next valid;
        "folds:<column>:<test>[,<valid>]", a column of the items of which these values are test and
        valid (default the next one); "column:<name>" of train, valid, test for each row; or "files": three files of
        interactions, with commas, are train, valid and test; or two, train, whose last tenth of rows is valid, and test.
        By items or folds, histories hold training rows alone.
      events: "clicks", "all" or "none", the interactions that enter histories; default clicks, but none where histories are
        given or are in a table.
      events_table: files of events (user, item, time and the event fields) that are history and never an example.
      history_fields: name=column, of event fields that stand beside the column `history`, one value for each of its items.
      history_separator: between the items of a history that is a text; default that of `separator`.
      history_order: newest_last or newest_first.
      negatives: where every row is a click, so many items are set against each, of those clicked up to then by anybody (in
        splits up to the row's own), without those of its user; by items or folds, of those of the click's own part.
      negatives_by: uniform = each item is as likely as another; popularity = in proportion to its clicks up to then.
      seed: of the negatives, of splits by items, users or folds, and of orders that are drawn.
      as_retrieval: a dataset of clicks alone, for retrieval: rows that are none are left out, a user's later clicks on an
        item, too.
      drop_unknown: drop interactions whose user or item is not in its file; else they are an error.
      untimed_histories: with --time-unit none and --events all or clicks: others = a row's history is its user's other
        training rows, in a drawn order; earlier = those before it in that order, and to valid and test rows all of them.
      time_unit: of whole numbers as times: seconds, milliseconds, ..., days; order = they only say which row comes first;
        none = there are no times, and histories only with --events; auto = by their size, between 1980 and 2100, else order.
      time_format: of times that are texts, as Python's strptime has it, e.g. "%d.%m.%Y %H:%M"; default ISO 8601.
      in_order: refuse interactions that are not in the order of time, naming the first; default they are sorted.
      delimiter: between the cells of text files: a character or several, or tab; default what the suffix says.
      quoting: what double quotes in text files mean: on = they enclose values, off = they are part of them, auto = as all
        of the file's show.
      encoding: of text files, as Python names it; default UTF-8, or UTF-16 where that is certain.
      header: whether text files have one; default yes, but for those whose columns are named here.
      column_names, item_column_names, user_column_names: of all columns of the interactions, items and users, in order.
      engine: duckdb = in bounded memory, however long the log, where the options allow; memory = all at once; auto = duckdb
        from a million rows on where it can; spark = as duckdb by Spark, where a log outgrows a machine. The dataset is the same.
      spark: where Spark runs: a master such as local[8] or spark://host:7077, or sc://host of Spark Connect; default what
        SPARK_REMOTE or Spark's own configuration says, or this machine.
      overwrite: replace an existing dataset.
    """
    check_engine(engine, spark)
    check_multi(multi := Multi(separator, max_values))
    text = TextFormat(delimiter, quoting, encoding, header)
    given = ((interactions, column_names), (items, item_column_names), (users, user_column_names))
    files = _files(given, events_table, text)
    roles, rule = _roles(columns or {}), parse(split)
    if rule == OF_FILES:
        files.interactions.name_parts(OF_FILES, SPLITS)
    clicks = check_clicks(Clicks(negatives, negatives_by, seed, as_retrieval, is_by_items(rule)))
    needing = {"--events-table": events_table is not None, "--in-order": in_order}
    untimed = _untimed(time_unit, events, untimed_histories, clicks)
    events = _timed(time_unit, rule, events, needing, "history" in roles)
    events = _events(events, roles, files.events, history_fields or {}, event_fields)
    _check_given(files, item_fields or item_text or item_image or features or item_numbers, user_fields or user_numbers)
    cuts = _checked(Cut(number_bins, numbers_like), event_numbers, events_table is not None or "history" in roles)
    besides = More(labels or {}, amounts or {}, context_numbers, () if events == "none" else event_numbers)
    fields = (context_fields, () if events == "none" else event_fields, event_fields)
    histories = (history_fields or {}, history_separator or separator, history_order)
    how = Reading(
        roles, label, rule, *fields, Times(time_unit, time_format), clicks, besides, in_order, untimed, histories
    )
    root = None if files.items is None else _image_root(files.items, image_root)
    of_items = (item_fields, multi, item_text, item_image, root, item_numbers)
    of_users = (user_fields, multi, (), None, None, user_numbers)
    asked = Asked(files, how, events, (of_items, of_users), drop_unknown)
    with DatasetWriter(out, overwrite) as writer, brought(writer, files, unpack=engine != "memory"):
        return made(writer, asked, cuts, features or {}, engine, spark)


def _files(given: tuple[tuple[Tables | None, Names], ...], events: Tables | None, text: TextFormat) -> Files:
    """What is read.

    Args:
      given: interactions, items and users, each with the names of its columns; None = there are none.
      events: a table of events.
      text: how text files are written.
    """
    sources: dict[str, Any] = {}
    for role, (tables, names) in zip(Files._fields, (*given, (events, ())), strict=True):
        form = check_format(text._replace(names=tuple(names)))
        sources[role] = None if tables is None else Source(tables, form, role)
    return Files(**sources)


def _checked(options: Cut, of_events: Names, elsewhere: bool) -> Cut:
    """The options about numbers; refuses what does not go together.

    Args:
      of_events: columns of numbers of events.
      elsewhere: histories are not of the interactions.
    """
    cut.check(options)
    if of_events and elsewhere:
        raise UserError(
            "--event-numbers: are of the interactions, and histories come from elsewhere here; leave them out"
        )
    return options


def _check_given(files: Files, of_items: Any, of_users: Any) -> None:
    """Refuses options about items and users whose file is not given."""
    if files.items is None and of_items:
        given = "fields, texts, images or features of items"
        raise UserError(f"{given} are given, but no items file; add --items")
    if files.users is None and of_users:
        raise UserError("fields of users are given, but no users file; add --users")


def _timed(unit: str, split: Split, events: str | None, needing: dict[str, bool], has_histories: bool) -> str | None:
    """Which interactions enter histories, as asked for; without times none, and what needs times is refused.

    Args:
      unit: of the times.
      needing: option -> whether it is given, of those that need times.
      has_histories: the log comes with a column of them.
    """
    if unit != NO_TIMES:
        return events
    if not isinstance(split, str | Whole):
        raise UserError(
            "--time-unit none: nothing says which rows come first; split them with --split "
            "items:0.7,0.1,0.2, users:..., folds:<column>:<test> or column:<name>"
        )
    for option, is_given in needing.items():
        if is_given:
            raise UserError(f"{option} needs times, and --time-unit is none; leave one of them out")
    return events or (None if has_histories else "none")


def _untimed(unit: str, events: str | None, histories: str, clicks: Clicks) -> Untimed | None:
    """How histories are made of rows without times; None where there are times, or no such histories.

    Raises:
      UserError: the way is unknown; negatives: their history would be longer than that of their click by
        the click itself, and tell which is which.
    """
    if histories not in UNTIMED:
        raise UserError(f"--untimed-histories '{histories}': choose {' or '.join(UNTIMED)}")
    if unit != NO_TIMES or events in (None, "none"):
        return None
    if clicks.negatives:
        raise UserError(
            f"--events {events} without times does not go with --negatives, whose histories would tell them; "
            "leave one out"
        )
    return Untimed(histories, clicks.seed)


def _roles(columns: dict[str, str]) -> dict[str, str]:
    """Role -> column name, complete."""
    for role in columns:
        if role not in ROLES:
            raise UserError(f"columns: no role '{role}'; {nearest(role, ROLES)}")
    roles = {role: role for role in ROLES[:4]} | columns
    return {"user_key": roles["user"], "item_key": roles["item"]} | roles


def _image_root(items: Source, image_root: str | Path | None) -> Path:
    if image_root is None and items.parent is None:
        return Path().absolute()  # which images of a bucket or a frame are relative to
    return Path(image_root or items.parent or "").absolute()


def _events(
    events: str | None, roles: dict[str, str], tables: Source | None, history_fields: dict, event_fields: tuple
) -> str:
    """Which interactions enter histories; refuses options about histories that do not go together."""
    if events not in (None, "clicks", "all", "none"):
        raise UserError(f"events '{events}': choose clicks, all or none")
    if history_fields and "history" not in roles:
        raise UserError("--history-fields: there is no history they stand beside; name it with --columns history=...")
    if "history" not in roles:
        return events or ("clicks" if tables is None else "none")
    if tables is not None or events not in (None, "none"):
        other = "--events-table" if tables is not None else f"--events {events}"
        raise UserError(f"{other} does not go with a column of histories, which has all events; leave one out")
    if event_fields:
        raise UserError(
            "--event-fields: events are those of the column of histories; say which column has a field of "
            "theirs with --history-fields name=column"
        )
    return "none"
