"""A topic of Kafka, by confluent-kafka, the client that Confluent keeps on librdkafka; an extra.

Offsets are kept beside the rows, not by a group of consumers: a row is in the dataset once, whatever happens. Messages are JSON
objects of the columns that the mapping names. Of a topic of one partition rows have one order; of several that of arrival,
which is kept once they are stored.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import confluent_kafka as kafka
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data.sources.arrived import LOOSE, SOURCE, Arrived, check_kind, of_another

MOST = 50_000  # messages that are taken together
PATIENCE = 0.2  # seconds to wait for messages, once
CONNECT = 10.0  # seconds to wait for a broker at the start
_SILENT = logging.getLogger("em3_jax.kafka")  # what the client logs it also reports
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
_GONE = (kafka.KafkaError.UNKNOWN_TOPIC_OR_PART, kafka.KafkaError._UNKNOWN_TOPIC, kafka.KafkaError._UNKNOWN_PARTITION)


class Topic:
    """A topic, kafka://host:port,host:port/topic.

    A position is {"source": address, "partitions": {number: next offset}}; brokers may have other addresses later. One that is
    away is waited for.
    """

    def __init__(self, address: str):
        parts = urlsplit(address)
        self.name, self._topic, self._servers = address, _topic(address), parts.netloc
        if not self._topic or not self._servers:
            raise UserError(f"{address}: write kafka://host:port/topic")
        self._consumer: Any = None
        self._away = 0.0  # since when no broker has answered
        self._assigned: dict[int, int] = {}

    def _connect(self) -> None:
        settings = {
            "bootstrap.servers": self._servers, "group.id": "em3_jax", "enable.auto.commit": False,
            "auto.offset.reset": "error", "enable.partition.eof": False, "error_cb": self._on_error, "logger": _SILENT,
        }  # fmt: skip
        self._consumer = kafka.Consumer(settings)

    def _on_error(self, error: Any) -> None:
        if error.code() == kafka.KafkaError._ALL_BROKERS_DOWN and not self._away:
            self._away = time.monotonic()
            print(f"{self.name}: no broker answers; waiting for one", file=sys.stderr, flush=True)

    def _partitions(self, timeout: float) -> list[int] | None:
        """Of the topic; None while no broker answers."""
        try:
            found = self._consumer.list_topics(self._topic, timeout).topics[self._topic]
        except kafka.KafkaException as error:
            if error.args[0].code() in _GONE:
                raise self._is_gone() from None
            return None
        if found.error is not None:
            if found.error.code() in _GONE:
                raise self._is_gone()
            return None
        return sorted(found.partitions)

    def _is_gone(self) -> UserError:
        return UserError(f"{self.name}: there is no such topic, or no longer; make it, or name another in the mapping")

    def check(self, position: Mapping[str, Any]) -> None:
        check_kind(self.name, position, "partitions")
        was = position.get(SOURCE, self.name)
        if _topic(was) != self._topic:
            raise of_another(self.name, was)

    def poll(self, position: Mapping[str, Any]) -> Arrived | None:
        self.check(position)
        offsets = {int(number): offset for number, offset in position.get("partitions", {}).items()}
        if self._consumer is None:
            self._connect()
            there = self._partitions(CONNECT)
            if there is None and not offsets:
                self._consumer = None
                raise UserError(f"{self.name}: no broker answers; start it, or mend the address")
        else:
            there = self._partitions(PATIENCE) if not self._assigned else list(self._assigned)
        self._assign(offsets, there or [])
        messages = self._consumer.consume(MOST, PATIENCE)
        if not messages:
            self._assign(offsets, self._partitions(PATIENCE) or [])  # there may be new ones, or the topic is gone
            return None
        return self._read(messages, offsets)

    def _assign(self, offsets: dict[int, int], there: list[int]) -> None:
        """Reads from the offsets on, unless it does: what was read and not kept is read again."""
        wanted = {number: offsets.get(number, 0) for number in {*there, *offsets}}
        if not wanted or wanted == self._assigned:
            return
        begin = kafka.OFFSET_BEGINNING
        self._consumer.assign(
            [kafka.TopicPartition(self._topic, number, offsets.get(number, begin)) for number in sorted(wanted)]
        )
        self._assigned = wanted

    def _read(self, messages: list[Any], offsets: dict[int, int]) -> Arrived | None:
        rows: list[dict] = []
        places: list[str] = []
        bad: list[tuple[str, str, str]] = []
        for message in messages:
            if message.error():
                self._check(message.error())
                continue
            self._away, number, offset = 0.0, message.partition(), message.offset()
            place = f"{self.name} partition {number} offset {offset}"
            offsets[number] = self._assigned[number] = offset + 1
            value = message.value() or b""
            try:
                row = json.loads(value)
                why = "" if isinstance(row, dict) else "is no JSON object"
            except ValueError:
                row, why = {}, "is not valid JSON"
            if why:
                bad.append((place, why, value.decode(errors="replace")))
            else:
                rows.append(row)
                places.append(place)
        if not rows and not bad:
            return None
        table, wrong = _table(rows)
        if wrong:
            bad += [(places[k], why, json.dumps(rows[k])) for k, why in sorted(wrong.items())]
            places = [place for k, place in enumerate(places) if k not in wrong]
        position = {
            SOURCE: self.name,
            "partitions": {str(number): offset for number, offset in sorted(offsets.items())},
        }
        return Arrived(table, position, self.name, lambda k: places[k], bad)

    def _check(self, error: Any) -> None:
        if error.code() in _GONE:
            raise self._is_gone()
        if error.code() == kafka.KafkaError._AUTO_OFFSET_RESET:
            raise UserError(
                f"{self.name}: messages that were not read yet are gone ({error.str()}); keep them longer, and begin again with "
                "another config.data.root and --workdir"
            )
        if error.fatal() or (not error.retriable() and error.code() not in _PASSING):
            raise UserError(f"{self.name}: {error.str()}")


_PASSING = (kafka.KafkaError._ALL_BROKERS_DOWN, kafka.KafkaError._TRANSPORT, kafka.KafkaError._TIMED_OUT)


def _topic(address: str) -> str:
    return urlsplit(address).path.strip("/")


def _table(rows: list[dict]) -> tuple[pa.Table, dict[int, str]]:
    """(the rows as columns, number -> why of those whose value is of another type than most rows' of that column)."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    wrong: dict[int, str] = {}
    for name in names:
        kinds = [_kind(row.get(name)) for row in rows]
        known = [kind for kind in kinds if kind]
        most = max(dict.fromkeys(known), key=known.count, default="")
        for k, kind in enumerate(kinds):
            if kind and kind != most:
                wrong.setdefault(
                    k, f"its '{name}' is {kind}, {json.dumps(rows[k][name])}, where other rows have {most}"
                )
    good = [row for k, row in enumerate(rows) if k not in wrong]
    table = pa.table({name: pa.array([row.get(name) for row in good]) for name in names})
    return table.replace_schema_metadata(LOOSE), wrong


def _kind(value: Any) -> str:
    """What a JSON value is; "" for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float):
        return "a number"
    return "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
