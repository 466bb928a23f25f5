"""No source of ours runs what it reads: nothing unpickles, evaluates, or trusts a checkpoint's code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("xgr_runtime", "prefill_worker", "decode_worker", "router", "kernels", "deploy")
MODULES = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"load", "load_all", "full_load", "unsafe_load", "unsafe_load_all", "full_load_all"}


def sources() -> list[Path]:
    """Python files, and scripts without a suffix that say they are Python."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path for path in files if path.suffix == ".py" or (not path.suffix and is_python(path)))


def is_python(path: Path) -> bool:
    with path.open("rb") as file:
        return b"python" in file.readline() and not path.name.startswith(".")


def dangers(tree: ast.AST) -> Iterator[str]:
    """What a source does that could run what it reads."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {n.name}" for n in names if n.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] in MODULES:
                    yield f"from {module} import"
                yield from (f"from {module} import {n.name}" for n in names if n.name in MODULES)
            case ast.Call(func=func, keywords=keywords):
                yield from call_dangers(ast.unparse(func), {k.arg: ast.unparse(k.value) for k in keywords})


def call_dangers(called: str, given: dict[str | None, str]) -> Iterator[str]:
    owner, _, name = called.rpartition(".")
    if not owner and name in BUILTINS:
        yield f"{called}()"
    if owner == "torch" and name == "load" and given.get("weights_only") != "True":
        yield "torch.load() without weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        yield f"{called}(allow_pickle={given['allow_pickle']})"
    if given.get("trust_remote_code", "False") != "False":
        yield f"{called}(trust_remote_code={given['trust_remote_code']})"
    if owner == "yaml" and name in LOADERS and "Safe" not in given.get("Loader", ""):
        yield f"{called}() without a safe loader"
    if name in ("read_pickle", "send_pyobj", "recv_pyobj", "all_gather_object", "broadcast_object_list"):
        yield f"{called}()"


def test_nothing_runs_what_it_reads() -> None:
    found = {
        str(path.relative_to(ROOT)): list(dangers(ast.parse(path.read_text(encoding="utf-8"))))
        for path in sources()
    }
    assert len(found) > 100, "the sources are where they were"
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import dill as d",
        "from marshal import loads",
        "from six.moves import cPickle",
        "eval(text)",
        "exec(text)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "socket.recv_pyobj()",
    ],
)
def test_the_scan_finds(line: str) -> None:
    assert list(dangers(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "re.compile(text)",
        "torch.load(file, weights_only=True)",
        "np.load(file)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.safe_load(text)",
        "json.load(file)",
    ],
)
def test_the_scan_lets_pass(line: str) -> None:
    assert not list(dangers(ast.parse(line)))
