"""`xgr catalog import`: bundles become catalogs, later generations edits; others are refused."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_bundles import MadeBundle

from xgr_runtime.catalog import Catalog, build_catalog
from xgr_runtime.cli import main
from xgr_runtime.errors import BadRequest
from xgr_runtime.wire.answers import CatalogChange, ErrorBody, ErrorDetail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FORMAT = "<a_{0}><b_{1}><c_{2}>"
SIZES = (40, 40, 40)
FIRST = [(100 + n, (n % 3, n % 4, n % 5)) for n in range(30)]
SECOND = [(500, (0, 0, 0)), (501, (39, 0, 7)), (502, (39, 0, 7))]
THIRD = [(600, (1, 2, 3))]


@pytest.fixture
def bundle(tmp_path: Path) -> MadeBundle:
    made = MadeBundle(tmp_path / "bundle", SIZES)
    made.publish("day1", FIRST)
    made.publish("day2", SECOND)
    made.publish("day3", THIRD)
    return made


def command(bundle: MadeBundle, *more: str) -> list[str]:
    return ["catalog", "import", str(bundle.root), "--sid-format", FORMAT, *more]


def test_a_generation_is_the_catalog_of_its_items(
    bundle: MadeBundle, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.xgr"
    flags = ["--out", str(out), "--model-path", str(checkpoint)]
    for name, items in (("day1", FIRST), ("", [*FIRST, *SECOND, *THIRD])):
        assert main(command(bundle, *flags, "--generation", name)) == 0
        source = tmp_path / "same.jsonl"
        lines = [{"item": item, "sid": list(sid)} for item, sid in items]
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "catalog.json").write_text(json.dumps({"sid_format": FORMAT}))
        assert Catalog.open(out).version == build_catalog(source, checkpoint).version


def test_templates_come_from_a_file_that_is_named(
    bundle: MadeBundle, checkpoint: Path, tmp_path: Path
) -> None:
    out, beside = tmp_path / "x.xgr", tmp_path / "mine.json"
    beside.write_text(json.dumps({"prefix": [1, 2], "max_history_items": 3}))
    flags = ["--out", str(out), "--model-path", str(checkpoint), "--catalog-json", str(beside)]
    assert main(command(bundle, *flags)) == 0
    assert Catalog.open(out).template.max_history_items == 3
    beside.unlink()
    assert main(command(bundle, *flags)) == 2


def test_what_came_later_is_printed_as_edits(bundle: MadeBundle, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(bundle, "--since", "day1")) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    right = [
        {"add": {"item": str(item), "sid": [f"<a_{a}>", f"<b_{b}>", f"<c_{c}>"]}}
        for item, (a, b, c) in (*SECOND, *THIRD)
    ]
    assert lines == right
    assert main(command(bundle, "--since", "day3")) == 0
    assert capfd.readouterr().out == ""


class Router:
    """Answers POST /catalog/items, and keeps what it was sent; `status` 200, or the error that it answers."""

    def __init__(self) -> None:
        self.posts: list[tuple[str, str, list[Any]]] = []
        self.refuse = False
        self.posted = threading.Event()
        router = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                parts = urlsplit(self.path)
                key = parse_qs(parts.query)["key"][0]
                router.posts.append((parts.path, key, [json.loads(line) for line in body.splitlines()]))
                detail = ErrorDetail("add[0]: no", "", None, BadRequest.code)
                error = msgspec.json.encode(ErrorBody(detail, "1", False))
                change = msgspec.json.encode(CatalogChange("abc", 1.5, 1, []))
                answer = error if router.refuse else change
                self.send_response(400 if router.refuse else 200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                router.posted.set()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def router() -> Iterator[Router]:
    made = Router()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_each_generation_is_sent_as_one_batch_with_its_key(
    bundle: MadeBundle, router: Router, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(bundle, "--since", "day1", "--url", router.url)) == 0
    assert [(path, key, len(lines)) for path, key, lines in router.posts] == [
        ("/catalog/items", "uuid-of-day2", 3),
        ("/catalog/items", "uuid-of-day3", 1),
    ]
    assert capfd.readouterr().out.splitlines() == [
        "day2: 3 items added, version abc",
        "day3: 1 items added, version abc",
    ]
    router.refuse = True
    assert main(command(bundle, "--since", "day2", "--url", router.url)) == 1
    said = capfd.readouterr().err
    assert "day3: " in said and "refused: add[0]: no" in said and said.count("\n") == 1


def test_a_bundle_is_followed_as_it_grows(
    bundle: MadeBundle, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation without its manifest is not taken yet."""
    unfinished = bundle.root / "day4"
    looks = 0

    def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        assert seconds == 0.5
        match looks:
            case 1:
                bundle.publish("day4", [(700, (5, 5, 5))], finished=False)
            case 2:
                assert router.posts == []
                shutil.rmtree(unfinished)
                bundle.items, bundle.last = [*FIRST, *SECOND, *THIRD], "uuid-of-day3"
                bundle.publish("day4", [(700, (5, 5, 5))])
            case 3:
                assert [key for _, key, _ in router.posts] == ["uuid-of-day4"]
                raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", look)
    flags = ["--since", "day3", "--url", router.url, "--follow", "--every", "0.5"]
    assert main(command(bundle, *flags)) == 130


def change(**fields: Any) -> Callable[[MadeBundle], None]:
    def changed(bundle: MadeBundle) -> None:
        path = bundle.root / "day3" / "manifest.json"
        manifest = json.loads(path.read_text())
        for name, value in fields.items():
            inner, _, last = name.rpartition("__")
            place = manifest
            for part in filter(None, inner.split("__")):
                place = place[part]
            if value is None:
                del place[last]
            else:
                place[last] = value
        path.write_text(json.dumps(manifest))

    return changed


def write_manifest(text: str) -> Callable[[MadeBundle], None]:
    return lambda bundle: void((bundle.root / "day3" / "manifest.json").write_text(text))


def void(_: object) -> None:
    pass


def drop_part(bundle: MadeBundle) -> None:
    (bundle.root / "day3" / "item_to_sid" / "part-00001.parquet").unlink()


def no_parquet(bundle: MadeBundle) -> None:
    (bundle.root / "day3" / "item_to_sid" / "part-00001.parquet").write_bytes(b"PAR1 and no more")


def fork(bundle: MadeBundle) -> None:
    bundle.last = "uuid-of-day2"
    bundle.publish("day3b", [(900, (3, 3, 3))])


def codes(sid: list[int]) -> Callable[[MadeBundle], None]:
    def changed(bundle: MadeBundle) -> None:
        path = bundle.root / "day3" / "item_to_sid" / "part-00001.parquet"
        table = pq.read_table(path)
        sids = table["codebook"].to_pylist()
        column = pa.array([*sids[:2], sid, *sids[3:]], pa.list_(pa.int64()))
        pq.write_table(table.set_column(2, "codebook", column), path)

    return changed


BAD: dict[str, tuple[Callable[[MadeBundle], Any], str]] = {
    "no-bundle": (lambda bundle: shutil.rmtree(bundle.root), "holds no generation with a manifest.json"),
    "no-json": (write_manifest("{"), "day3/manifest.json: Input data was truncated"),
    "no-uuid": (change(bundle_uuid=None), "Object missing required field `bundle_uuid`"),
    "no-codebook": (change(codebook=[40, 0, 40]), "Expected `int` >= 1 - at `$.codebook[1]`"),
    "no-table": (change(artifacts__item_to_sid=None), "the manifest names no item_to_sid"),
    "csv": (change(artifacts__item_to_sid__save_type="csv"), "item_to_sid is written as 'csv'"),
    "rows": (drop_part, "item_to_sid has 27 rows, the manifest says 34: copy it again"),
    "broken": (no_parquet, "part-00001.parquet is not a Parquet file"),
    "moved": (lambda bundle: shutil.rmtree(bundle.root / "day3" / "sid_to_items"), "sid_to_items is neither"),
    "sizes": (change(codebook=[3, 40, 40]), "is not of the codebook [3, 40, 40]"),
    "code": (codes([1, 40, 1]), "part-00001.parquet: row 3: the SID [1, 40, 1] is not of the codebook"),
    "depth": (codes([1, 4]), "part-00001.parquet: row 3: the SID [1, 4] is not of the codebook"),
    "below": (codes([1, -1, 4]), "row 3: the SID [1, -1, 4] is not of the codebook"),
    "moved-item": (codes([9, 9, 9]), "item_to_sid has other items on that SID"),
    "fork": (fork, "day3, day3b are all the newest of their kind"),
    "same-uuid": (change(bundle_uuid="uuid-of-day1"), "have one bundle_uuid"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_whole_bundle_is_refused(
    case: str, bundle: MadeBundle, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, said = BAD[case]
    spoil(bundle)
    out = tmp_path / "x.xgr"
    assert main(command(bundle, "--out", str(out), "--model-path", str(checkpoint))) == 2
    error = capfd.readouterr().err
    assert said in error and error.count("\n") == 1 and not out.exists()


def test_two_that_add_to_one_are_refused(bundle: MadeBundle, capfd: pytest.CaptureFixture[str]) -> None:
    fork(bundle)
    assert main(command(bundle, "--since", "day2")) == 2
    assert "day3, day3b both add to day2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name either --out FILE"),
        (["--out", "x", "--since", "day1"], "name either --out FILE"),
        (["--out", "x", "--follow"], "--url and --follow go with --since"),
        (["--since", "day9"], "there is no finished generation 'day9': there are day1, day2, day3"),
        (["--since", "day1", "--url", "http://127.0.0.1:9"], "nothing listens at"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: list[str], said: str, bundle: MadeBundle, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command(bundle, *flags)) in (1, 2)
    assert said in capfd.readouterr().err
