"""Pages: each comes whole, and loads nothing but answers of its server; the page of routes draws them all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
from live_http import serving

if TYPE_CHECKING:
    import httpx
    from conftest import Server

KEY = "client-k3y"


both = pytest.mark.parametrize("path", ["/docs", "/"])


def page_of(server: Server, path: str = "/docs", **headers: str) -> httpx.Response:
    return server.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def element(page: str, name: str) -> str:
    """What stands in the only one of that name."""
    (text,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
    return str(text)


@both
def test_they_load_nothing_of_others(server: Server, path: str) -> None:
    page = page_of(server, path)
    assert page.headers["content-type"].startswith("text/html")
    text = page.text.replace("http://www.w3.org/2000/svg", "")  # a name, which nobody asks for
    assert not re.search(r"//\w|\bsrc\b|<link|<iframe|<object|<embed|<img|\bimport\b|url\(", text)


def test_the_routes_load_nothing_but_the_description(server: Server) -> None:
    page = page_of(server)
    assert set(re.findall(r'href="([^"]*)"|fetch\(([^,)]*)', page.text)) == {
        ("openapi.json", ""),
        ("", '"openapi.json"'),
    }


@both
def test_a_policy_allows_its_own_script_and_style_alone(server: Server, path: str) -> None:
    page = page_of(server, path)
    policy = dict(part.split(maxsplit=1) for part in page.headers["content-security-policy"].split(";"))
    digests = {
        f"{name}-src": f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for name in ("script", "style")
        for text in [element(page.text, name)]
    }
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    rest = {"connect-src": "'self'", "require-trusted-types-for": "'script'"}
    assert policy == {**nothing, **digests, **rest}
    assert not re.search(r"\bon\w+=|\bstyle=|javascript:", page.text)  # which it would not run
    assert page.headers["x-content-type-options"] == "nosniff"


@both
def test_they_are_kept_and_asked_for_again(server: Server, path: str) -> None:
    page = page_of(server, path)
    tag = page.headers["etag"]
    assert page.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        same = page_of(server, path, if_none_match=known)
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert same.headers["content-security-policy"] == page.headers["content-security-policy"]
    assert page_of(server, path, if_none_match='"other"').content == page.content


@both
def test_the_head_is_that_of_the_page(server: Server, path: str) -> None:
    page = page_of(server, path)
    with serving(server.app) as live:
        head = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        status, headers, body = live.ask(head)
    assert (status, body, headers["etag"]) == (200, b"", page.headers["etag"])
    assert int(headers["content-length"]) == len(page.content)


@both
def test_without_a_key_the_pages_are_the_same_and_all_else_is_closed(server: Server, path: str) -> None:
    before = page_of(server, path).content
    server.set(api_key=KEY)
    assert page_of(server, path).content == before  # so they tell nothing of the deployment
    for closed in ("/openapi.json", "/workers", "/requests", "/items?title=x", "/server_info"):
        assert server.get(closed).status_code == 401
    assert page_of(server, path, authorization="Bearer wrong").status_code == 200


BROWSER = """
class Element {
  constructor(tag) { Object.assign(this, { children: [], value: process.argv[2], hidden: tag === "form" }); }
  append(...parts) { this.children.push(...parts); }
  replaceChildren(...parts) { this.children = parts; }
  addEventListener(name, act) { this[name] = act; }
  querySelector() { return this; }
  get text() { return this.children.map((part) => part.text ?? part).join(""); }
  get ids() { return this.children.flatMap((part) => part.ids ?? []).concat(this.id ?? []); }
}
const found = {};
globalThis.location = { hash: "" };
globalThis.document = {
  baseURI: "http://shop.example/behind/docs",
  createElement: (tag) => new Element(tag),
  querySelector: (selector) => (found[selector] ??= new Element(selector)),
  getElementById: () => null,
};
const answers = JSON.parse(require("fs").readFileSync(0, "utf-8"));
globalThis.fetch = async (address, { headers }) => {
  const { status, body } = answers[headers.Authorization ?? ""];
  return { status, ok: status === 200, json: async () => body };
};
const shown = () => ({
  asks: !found.form.hidden, said: found["[role=status]"].textContent,
  text: found.main?.text ?? "", ids: found.main?.ids ?? [],
});
setTimeout(() => {
  const first = shown();
  found.form.submit({ preventDefault() {} });
  setTimeout(() => console.log(JSON.stringify([first, shown()])), 0);
}, 0);
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="nothing here runs a page's script")
@pytest.mark.parametrize("key", ["", KEY], ids=["open", "key"])
def test_all_of_the_description_is_drawn(server: Server, key: str) -> None:
    """In a stand-in of a browser, once as the page is opened and once with a key given."""
    server.set(api_key=key or None)
    answers = {}
    for given in ("", f"Bearer {KEY}"):
        response = server.get("/openapi.json", headers={"authorization": given})
        answers[given] = {"status": response.status_code, "body": response.json()}
    first, then = run_page(element(page_of(server).text, "script"), answers)
    assert first["asks"] == bool(key) and ("needs a key" in first["said"]) == bool(key)
    assert bool(first["text"]) != bool(key)
    assert not then["asks"] and not then["said"]
    assert "-H 'Authorization: Bearer KEY'" in then["text"]
    assert "curl -s -X POST http://shop.example/behind/generate" in then["text"]
    described = answers[f"Bearer {KEY}"]["body"]
    assert set(described["components"]["schemas"]) == set(then["ids"])
    fields = [name for shape in described["components"]["schemas"].values() for name in shape["properties"]]
    errors = [
        status
        for route in described["paths"].values()
        for way in route.values()
        for status in way["responses"]
    ]
    for part in [*described["paths"], *fields, *errors, "list of integer 0 to 26", "default 0"]:
        assert part in then["text"], part


def run_page(script: str, answers: dict[str, Any]) -> list[dict[str, Any]]:
    """What it shows at first, and once `KEY` was given."""
    command = ["node", "-e", BROWSER + script, "page", KEY]
    ended = subprocess.run(command, input=json.dumps(answers), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    shown: list[dict[str, Any]] = json.loads(ended.stdout)
    return shown
