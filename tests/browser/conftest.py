"""A served bundle and a page in headless Chromium; every request and every complaint of the page is kept."""

import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from models.demo.books import read_books
from retrieval import bundle
from retrieval.catalog import Catalog

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
START_S = 60.0
STEP_MS = 15_000  # longest wait for one thing on the page: the machine may be busy


@contextmanager
def running(directory: Path, *, bundle_dir: Path, **settings: str) -> Iterator[str]:
    """The origin of a service of its own process on a free port; it ends with the block."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SEQUITUR_")}
    environment |= {
        "SEQUITUR_STORE": f"sqlite:///{directory}/sessions.sqlite",
        "SEQUITUR_DRAIN_S": "0",  # no balancer is waited for
        "SEQUITUR_DEADLINE_MS": "10000",  # what is not about time must not depend on how busy the machine is
        **{f"SEQUITUR_{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "service", "--bundle", str(bundle_dir), "--port", "0"]
    with (directory / "service.log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
        )
        with process:
            try:
                yield _origin(process, directory / "service.log")
            finally:
                process.terminate()


def _origin(process: "subprocess.Popen[str]", log: Path) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_S) else ""
    if " on http" not in line:
        pytest.fail(f"the service did not start within {START_S:g} s; it said {line!r} and {log.read_text()!r}")
    return line.split(" on ")[1].strip()


def write_books(path: Path) -> Path:
    """Writes a bundle of the demo catalogue whose vectors are subjects, authors and series: no training."""
    books = [book for book in read_books() if book.available]
    rng = np.random.default_rng(0)
    directions: dict[str, np.ndarray] = {}

    def direction(word: str) -> np.ndarray:
        return directions.setdefault(word, rng.normal(size=24))

    vectors = [
        sum(direction(word) for word in (*book.categories, book.author, *[book.series] * 2) if word) for book in books
    ]
    table = np.stack([np.zeros(24), *[vector / np.linalg.norm(vector) for vector in vectors]]).astype(np.float32)
    popularity = rng.zipf(1.6, len(books)).clip(max=900)
    catalog = Catalog.build(
        [book.item_id for book in books],
        popularity=popularity,
        attributes={
            "title": [book.title for book in books],
            "author": [book.author for book in books],
            "year": [float(book.year) for book in books],
            "categories": [list(book.categories) for book in books],
            "price": [book.price for book in books],
        },
    )
    return write(path, catalog, table)


def write(path: Path, catalog: Catalog, table: "np.ndarray[Any, Any]") -> Path:
    """Writes a bundle of `catalog` with the toy's graph over `table`, float32 of shape (N + 1, D)."""
    with bundle.writing(path) as directory:
        catalog.save(directory / bundle.CATALOG)
        np.save(directory / bundle.ITEM_VECTORS, table, allow_pickle=False)
        toy.graph(directory / "encoder.onnx", table)
        (directory / bundle.WARMUP).write_text("[]")
        bundle.seal(directory, toy.manifest())
    return path


@dataclass
class Seen:
    """What a page did: the URLs it asked for, the bodies it sent, and what its console and scripts complained of."""

    urls: list[str] = field(default_factory=list)
    bodies: list[tuple[str, Any]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium. One per module, because its loop must be gone before other modules run theirs."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the path; install it, with Debian's package `chromium`")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing; pip install -e '.[dev]'")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[str]]:
    """Starts a service with settings of its own, see `running`."""
    return running


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory, toy_bundle: Path) -> Iterator[str]:
    """A service on the toy bundle."""
    with running(tmp_path_factory.mktemp("toy-service"), bundle_dir=toy_bundle) as url:
        yield url


@pytest.fixture(scope="module")
def books_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service on the demo catalogue: the bundle that ships where there is one, else one made here."""
    directory = tmp_path_factory.mktemp("books-service")
    shipped = ROOT / "artifacts" / "demo"
    bundle_dir = shipped if shipped.exists() else write_books(directory / "books")
    with running(directory, bundle_dir=bundle_dir) as url:
        yield url


@pytest.fixture
def bare_bundle(tmp_path: Path) -> Path:
    """A bundle whose catalogue holds nothing but ids, one of them with everything that an id may hold."""
    ids = ["42", "a/b?c=d&e#f", 'say "hi"', "<b>bold</b>", "📚", *[f"sku-{n}" for n in range(15)]]
    return write(tmp_path / "bare", Catalog.build(ids, popularity=np.arange(20, 0, -1)), toy.vectors())


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., tuple[Any, Seen]]]:
    """Opens a page in a context of its own, with what it does kept; `prepare` may change it before it loads."""
    with ExitStack() as contexts:

        def opened(url: str, *, prepare: Callable[[Any], object] | None = None, **options: Any) -> tuple[Any, Seen]:
            context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
            contexts.callback(context.close)
            context.set_default_timeout(STEP_MS)
            page, seen = context.new_page(), Seen()
            page.on("request", lambda request: _keep(request, seen))
            page.on("pageerror", lambda error: seen.complaints.append(str(error)))
            page.on("console", lambda said: seen.complaints.append(said.text) if said.type != "log" else None)
            if prepare is not None:
                prepare(page)
            page.goto(url)
            return page, seen

        yield opened


def _keep(request: Any, seen: Seen) -> None:
    seen.urls.append(request.url)
    if request.post_data:
        seen.bodies.append((request.url, request.post_data_json))
