"""Installing by uv: it looks where pip is configured to look, and leaves to pip what it is not told of."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from scripts import DEPLOY, program

LISTING = r"""
:env:.extra-index-url='https://a/simple'
:env:.timeout='9'
download.index-url='https://not-of-install/simple'
global.extra-index-url='https://before/simple'
global.find-links='\n/one\nfile:///two'
global.index-url='https://everywhere/simple'
install.index-url='https://for-install/simple?a=b'
"""


@pytest.fixture
def by_uv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DEPLOY))
    import install_by_uv

    return install_by_uv


def test_what_pip_is_told_uv_is_told(by_uv: ModuleType) -> None:
    assert by_uv.for_uv(by_uv.configured(LISTING)) == by_uv.BY_PIPS_RULES | {
        "UV_INDEX_URL": "https://for-install/simple?a=b",
        "UV_EXTRA_INDEX_URL": "https://a/simple",
        "UV_FIND_LINKS": "/one,file:///two",
    }
    assert by_uv.for_uv(by_uv.configured("")) == by_uv.BY_PIPS_RULES


def test_pip_itself_is_asked(by_uv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://b/simple")
    assert by_uv.settings_of_pip()["extra-index-url"] == "https://b/simple"


def test_what_uv_would_not_heed_is_left_to_pip(by_uv: ModuleType) -> None:
    with pytest.raises(ValueError, match="require-hashes"):
        by_uv.for_uv(by_uv.configured("install.require-hashes='true'\nglobal.index-url='https://a'"))


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this Python's stand-in writes how it is called; its pip is configured with an index."""
    listing = """*"config list") echo "global.index-url='https://a'";;"""
    program(
        tmp_path / "python",
        f'echo "$UV_INDEX_URL $*" >>{tmp_path}/calls\ncase "$*" in {listing} *"$FAILS"*) exit 3;; esac',
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("FAILS", "nothing")
    return tmp_path / "calls"


def test_uv_is_installed_by_pip_and_installs_into_this_python(by_uv: ModuleType, calls: Path) -> None:
    assert by_uv.main(["--no-deps", "x==1"]) == 0
    listed, installed, done = calls.read_text().splitlines()
    assert listed.endswith("config list") and installed.endswith(f"install {by_uv.UV}")
    assert done.startswith("https://a -m uv pip install ")
    assert done.endswith(f"--python {sys.executable} --no-deps x==1")


@pytest.mark.parametrize("never_kept", [True, False])
def test_all_is_compiled_where_python_keeps_nothing_that_it_compiles(
    by_uv: ModuleType, calls: Path, monkeypatch: pytest.MonkeyPatch, never_kept: bool
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", never_kept)
    assert by_uv.main(["x"]) == 0
    assert ("--compile-bytecode" in calls.read_text().splitlines()[-1]) == never_kept


@pytest.mark.parametrize("fails", ["install uv>=", "-m uv"], ids=["no-uv", "uv-fails"])
def test_a_failure_is_told(
    by_uv: ModuleType, calls: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setenv("FAILS", fails)
    assert by_uv.main(["x"]) == 3
