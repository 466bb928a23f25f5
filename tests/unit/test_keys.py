"""Key files and `xgr keys`: what is written, what is refused, and that no secret is ever shown."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from xgr_runtime.cli import main
from xgr_runtime.errors import ConfigError
from xgr_runtime.transport import new_key_pair, public_key
from xgr_runtime.transport.keyring import Keyring, is_key, read_allowed, read_key, read_keyring, write_key


@pytest.fixture
def pair() -> tuple[str, str]:
    return new_key_pair()


@pytest.fixture
def files(tmp_path: Path, pair: tuple[str, str]) -> tuple[Path, Path]:
    """The key file of `decode-0`, and an allow list with `router` alone."""
    key = write_key(tmp_path, "decode-0", pair[1])
    allow = tmp_path / "allow"
    allow.write_text(f"# all of us\n\nrouter {new_key_pair()[0]}\n")
    allow.chmod(0o644)
    return key, allow


def test_what_new_writes_is_read_back_and_is_its_owners_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", "decode-0", "--folder", str(tmp_path)]) == 0
    name, public = capsys.readouterr().out.split()
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path)[0] == name == "decode-0"
    assert public_key(read_key(path)[1]) == public
    assert main(["keys", "public", str(path)]) == 0
    assert capsys.readouterr().out.split() == [name, public]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path, pair: tuple[str, str]) -> None:
    before = os.umask(0)
    try:
        path = write_key(tmp_path, "a", pair[1])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "router.key"
    there.write_text("precious")
    assert main(["keys", "new", "router", "--folder", str(tmp_path)]) == 2
    assert "there already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"], "and leaves nothing else behind"


def test_new_follows_no_link_that_dangles(tmp_path: Path, pair: tuple[str, str]) -> None:
    (tmp_path / "router.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="there already"):
        write_key(tmp_path, "router", pair[1])
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_write_that_fails_leaves_no_file(
    tmp_path: Path, pair: tuple[str, str], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ConfigError, match="No space left"):
        write_key(tmp_path, "router", pair[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "../x", "a b", "a/b", "-x", "a#b", "é", "x" * 65])
def test_a_name_that_is_none_is_refused(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", "--folder", str(tmp_path), "--", name]) == 2
    assert "is no name" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "a", "--folder", str(tmp_path / "none")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_api_keys_have_256_bits_and_differ(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "api"]) == main(["keys", "api"]) == 0
    one, other = capsys.readouterr().out.split()
    assert len(bytes.fromhex(one)) == len(bytes.fromhex(other)) == 32 and one != other


def test_a_keyring_is_read_and_hides_its_secret(files: tuple[Path, Path], pair: tuple[str, str]) -> None:
    keys = read_keyring(*map(str, files))
    assert keys is not None and (keys.name, keys.secret) == ("decode-0", pair[1])
    assert list(keys.allowed) == ["router"] and is_key(keys.key_of("router"))
    assert pair[1] not in repr(keys) and pair[1] not in f"{keys}"


def test_no_files_are_no_keys_and_one_alone_is_refused(files: tuple[Path, Path]) -> None:
    assert read_keyring("", "") is None
    for key, allow in ((str(files[0]), ""), ("", str(files[1]))):
        with pytest.raises(ConfigError, match="go together"):
            read_keyring(key, allow)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610], ids=oct)
def test_a_key_that_others_may_use_is_refused(files: tuple[Path, Path], mode: int) -> None:
    files[0].chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key(files[0])


@pytest.mark.parametrize("mode", [0o664, 0o646], ids=oct)
def test_a_list_that_others_may_write_is_refused(files: tuple[Path, Path], mode: int) -> None:
    files[1].chmod(mode)
    with pytest.raises(ConfigError, match="chmod go-w"):
        read_allowed(files[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(files: tuple[Path, Path]) -> None:
    for path in files:
        os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="another user"):
        read_key(files[0])
    with pytest.raises(ConfigError, match="another user"):
        read_allowed(files[1])


def test_an_empty_list_is_refused(files: tuple[Path, Path]) -> None:
    files[1].write_text("# nobody yet\n")
    with pytest.raises(ConfigError, match="lists nobody"):
        read_keyring(*map(str, files))


def test_a_secret_in_the_list_is_refused_and_not_shown(
    files: tuple[Path, Path], pair: tuple[str, str]
) -> None:
    files[1].write_text(f"decode-0 {pair[1]}\n")
    with pytest.raises(ConfigError, match="lists a secret key") as refused:
        read_keyring(*map(str, files))
    assert pair[1] not in str(refused.value)


GOOD = "x" * 40


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "# a\n", "a\n", "a \n", f"{GOOD}\n", "a short\n", f"a {GOOD}x\n", f"a {GOOD[1:]}~\n"),
        *(f"a {GOOD} more\n", f"a {GOOD}\nb {GOOD[1:]}0\n", f"a {'#' * 40}\n", f"../a {GOOD}\n"),
        *("\xff\n", "\0"),
    ],
    ids=repr,
)
def test_a_key_file_that_is_none_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.key"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"bad\.key") as refused:
        read_key(path)
    assert GOOD[:8] not in str(refused.value)


@pytest.mark.parametrize("line", [f"a {GOOD[1:]}0", f"b {GOOD}"], ids=["name", "key"])
def test_a_name_or_key_that_is_listed_twice_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "allow"
    path.write_text(f"a {GOOD}\n{line}\n")
    with pytest.raises(ConfigError, match=r"line 2.*twice"):
        read_allowed(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.key cannot be read"):
        read_key(tmp_path / "none.key")


def test_a_peer_without_a_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"decode-1.*--curve-allow"):
        Keyring("a", "", {}).key_of("decode-1")


def test_a_clusters_secret_is_shown_to_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["keys", "kubernetes"]) == 2
    shown = capsys.readouterr()
    assert "kubectl create" in shown.err and not shown.out


def test_a_cluster_has_a_key_per_role_that_all_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "kubernetes", "--name", "links"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kind"] == "Secret" and made["metadata"] == {"name": "links"}
    allowed = dict(line.split() for line in made["stringData"].pop("allow").splitlines())
    assert set(made["stringData"]) == {f"{role}.key" for role in allowed} and len(allowed) == 3
    for role, public in allowed.items():
        name, secret = made["stringData"][f"{role}.key"].split()
        assert name == role and public_key(secret) == public
