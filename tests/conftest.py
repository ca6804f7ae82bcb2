"""Shared by all tests: small planted data, made once per worker."""

import gc
import os
from pathlib import Path

# Programs compiled by one test, worker or subprocess serve the others. Set before jax is imported.
ROOT = Path(__file__).parent.parent
CHROMIUM = Path("/usr/bin/chromium")
MOST_KEPT = 2 << 30  # bytes of compiled programs
PROGRAMS = ROOT / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.data.readers.synthetic import synthetic
from tests import compilation
from tests.tiny import Tiny, write_tiny


@pytest.fixture(scope="module", autouse=True)
def code_generation(request):
    """Chooses how much care XLA takes with the programs of a module and of the processes it starts.

    Tests spend most of their time compiling; without LLVM's optimisation and the newer emitters it is
    a fifth. The collectives and memory of a program are the same, its arithmetic too, but not always
    its fusions and the last bit; and it runs three times as long. So `quickly_compiled` is for modules
    that look at runs, files, messages and formulas; not for those that train long, measure, hold two
    different programs to the same bits, or test how close floats come.
    """
    compilation.choose(request.node.get_closest_marker("quickly_compiled") is not None)


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Dataset:
    """A planted dataset of 4,000 interactions, 120 users and 150 items."""
    return synthetic(tmp_path_factory.mktemp("data") / "planted", interactions=4000, users=120, items=150, seed=1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """A few hundred rows with every kind of field, event fields among them, and the log they were made from."""
    return write_tiny(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real datasets, where there is one."""
    folder = Path(os.environ.get("EM3_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real datasets are not here ({folder}); set EM3_SHARED_DATA")
    return folder


@pytest.fixture
def browser():
    """A headless Chromium, from Debian's packages."""
    if not CHROMIUM.exists():
        pytest.skip(f"no browser here ({CHROMIUM}): apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser; pip install playwright")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield opened
        opened.close()


def watched(browser, **settings) -> tuple:
    """(a new page of the browser, addresses it has asked for, what it has complained of)."""
    view, requests, complaints = browser.new_page(**settings), [], []
    view.on("request", lambda request: requests.append(request.url))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("console", lambda message: complaints.append(message.text))
    view.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    return view, requests, complaints


def user_error(function, *args) -> str:
    """The one line of the `UserError` that the call must raise."""
    with pytest.raises(UserError) as error:
        function(*args)
    message = str(error.value)
    assert "\n" not in message
    return message


def pytest_configure():
    """Not on import, for processes that tests start import tests, too."""
    compilation.begin()


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left with them at the end; else those together that are compiled alike."""

    def key(item) -> tuple[float, bool]:
        seconds = max((mark.args[0] for mark in item.iter_markers("seconds")), default=0)
        return -seconds, item.get_closest_marker("quickly_compiled") is None

    items.sort(key=key)


def pytest_sessionstart(session):
    """Of the programs that are kept the oldest go, where they have become many: each is of one version of the code."""
    if hasattr(session.config, "workerinput"):
        return
    written = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in PROGRAMS.glob("*-cache"))
    excess = sum(size for _, size, _ in written) - MOST_KEPT
    for _, size, path in written if excess > 0 else ():
        path.unlink(missing_ok=True)
        excess -= size
        if excess < -MOST_KEPT / 2:
            break


def pytest_collection_finish():
    """What is imported stays, and tracing makes many objects: the collector would look at all of them a thousand times."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
