"""The page at / in a real browser, by clicks: with keys, while a worker is killed and the catalog changes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from items import Items
from serve import Serve

from xgr_runtime.client import XgrClient

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
driver = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'browser'")
expect = driver.expect
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, such as Debian's package chromium")

KEY, OPERATOR = "a-client's-key", "the-operator's-key"
SLOW = 60_000  # milliseconds, for what takes one or two of them
KNOWN = re.compile(
    "Failed to load resource|the server responded"
)  # Chromium's word for an answer such as 401


@pytest.fixture(scope="module")
def served(checkpoint: Path, items: Items, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """With titles, keys and a store of the catalog."""
    folder = tmp_path_factory.mktemp("page")
    rows = [{"item": item, "sid": list(sid), "title": title_of(item)} for item, sid in items.sids.items()]
    (folder / "catalog.json").write_text(json.dumps({"sid_format": "token_ids"}))
    (folder / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model-path": checkpoint,
        "catalog": folder / "catalog.jsonl",
        "catalog-store": folder / "store",
        "port": 0,
        "threads": 1,
        "silence": 5,
    }
    environ = {**os.environ, "XGR_API_KEY": KEY, "XGR_ADMIN_API_KEY": OPERATOR}
    deployment = Serve([f"--{name}={value}" for name, value in settings.items()], environ)
    try:
        deployment.url()
        yield deployment
    finally:
        deployment.close()


def title_of(item: str) -> str:
    return f"Thing {item} of the Shop"


@pytest.fixture
def page(served: Serve) -> Iterator[Page]:
    """The page, freshly opened; at the end no script may have said that something is wrong."""
    problems: list[str] = []
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(SLOW)
        opened.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("request", lambda asked: problems.append(asked.url) if foreign(asked.url, served) else None)
        opened.goto(served.url())
        yield opened
        browser.close()
    assert [problem for problem in problems if not KNOWN.search(problem)] == []


def foreign(url: str, served: Serve) -> bool:
    return not url.startswith(served.url())


def give_key(page: Page, key: str) -> None:
    page.get_by_label("Key:").fill(key)
    page.get_by_role("button", name="Show").click()


def ask(page: Page, items: Items) -> str:
    """What the page says once it was asked what follows two items, one found by its title."""
    first, second = list(items.sids)[:2]
    page.get_by_label("Items with these words").fill(f"shop {first} THING")
    page.get_by_role("button", name="Find").click()
    page.locator("#found button").first.click()
    page.get_by_label("Id of an item").fill(second)
    page.locator("#add").click()
    expect(page.locator("#history li")).to_have_count(2, timeout=SLOW)
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#asked")).to_contain_text("results", timeout=SLOW)
    return str(page.locator("#asked").inner_text())


def test_a_client_may_ask_and_not_see(page: Page, items: Items) -> None:
    expect(page.get_by_text("needs a key")).to_be_visible(timeout=SLOW)
    expect(page.locator("main")).to_be_hidden()
    give_key(page, "wrong")
    expect(page.get_by_text("is another")).to_be_visible(timeout=SLOW)
    give_key(page, KEY)
    expect(page.get_by_text("needs the admin key")).to_be_visible(timeout=SLOW)
    assert ask(page, items).startswith("10 results")
    titles = page.locator("#ranked tbody tr td:nth-child(3)").all_inner_texts()
    names = page.locator("#ranked tbody tr td:nth-child(2)").all_inner_texts()
    assert len(names) == 10 and [title_of(name) for name in names] == titles
    assert not {*names} & {*list(items.sids)[:2]}, "none of the history"
    expect(page.locator("#processes table")).to_have_count(0)


def test_all_of_it_by_clicks(page: Page, served: Serve, items: Items) -> None:
    give_key(page, OPERATOR)
    rows = page.locator("#processes tbody tr")
    expect(rows).to_have_count(3, timeout=SLOW)
    ask(page, items)
    page.get_by_role("button", name="remove").first.click()
    expect(page.locator("#history li")).to_have_count(1)
    page.get_by_label("Only items where").fill("price <")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#asked")).to_contain_text("where", timeout=SLOW)
    page.locator("#clear").click()
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#asked")).to_have_text("Add an item to the history first.")
    page.get_by_label("Items with these words").fill("violin")
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#looked")).to_have_text("No title holds these words.", timeout=SLOW)
    page.locator("#recent tr", has_text="200").get_by_role("button").first.click()
    expect(page.locator("#life svg")).to_contain_text("search", timeout=SLOW)
    expect(page.locator("#figures figure")).to_have_count(8, timeout=SLOW)

    about = page.locator("#about").inner_text()
    with XgrClient(served.url(), api_key=OPERATOR) as client:
        client.edit_items(hide=[list(items.sids)[-1]])
    expect(page.locator("#about")).not_to_have_text(about, timeout=SLOW)

    worker = served.worker("decode_worker")
    worker.suspend()  # one that is killed may be back before the page looks
    expect(rows.locator(".bad")).not_to_have_count(0, timeout=SLOW)
    worker.kill()
    expect(rows.locator(".good")).to_have_count(3, timeout=SLOW)
    page.locator("#clear").click()
    page.get_by_label("Only items where").fill("")
    assert ask(page, items).startswith("10 results")
