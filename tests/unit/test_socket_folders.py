"""Where sockets lie: any folder that can carry them does, others are named at once."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from xgr_runtime.config import RouterConfig, parse, to_argv
from xgr_runtime.errors import ConfigError
from xgr_runtime.launcher.run_folder import run_folder
from xgr_runtime.launcher.topology import check_port
from xgr_runtime.transport import Link, Listener
from xgr_runtime.transport.addresses import check_address, check_url
from xgr_runtime.wire.messages import ToDecode


@pytest.mark.parametrize("name", ["a,b", "a b", "a:b", "a#b", "a%b", "*", "a@b", "ü", "[a", "a'\"b", "a//b"])
def test_any_name_of_the_temporary_folder_carries_sockets(tmp_path: Path, name: str) -> None:
    (parent := tmp_path / name).mkdir(parents=True)
    with run_folder(parent) as folder:
        addresses = [f"ipc://{folder.path / worker}" for worker in ("prefill-0", "prefill-1")]
        config = RouterConfig(model_path="/m", catalog="/c", prefill=addresses, decode=addresses[:1])
        assert parse(RouterConfig, to_argv(config), {}) == config
        listener: Listener[Any] = Listener(addresses[0], ToDecode)
        link: Link[Any] = Link(addresses[0], ToDecode)
        link.close()
        listener.close()


@pytest.mark.parametrize("name", ["x" * 100, "ü" * 50, "a\nb", "a\x7fb", "\udcff"], ids=ascii)
def test_a_temporary_folder_that_carries_none_is_named_at_once(tmp_path: Path, name: str) -> None:
    (parent := tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="set TMPDIR"), run_folder(parent):
        pass
    assert not list(parent.iterdir())


def test_the_longest_folder_that_is_taken_carries_the_longest_socket(tmp_path: Path) -> None:
    for length in itertools.count(1):
        (parent := tmp_path / ("x" * length)).mkdir()
        try:
            with run_folder(parent) as folder:
                Listener(f"ipc://{folder.path}/prefill-255.data", ToDecode).close()
        except ConfigError as error:
            assert "set TMPDIR" in str(error) and length > 1
            break


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "ipc",
            "ipc://",
            "ipc:///",
            "ipc:///nowhere/x",
            "ipc://" + "x" * 200,
            "tcp://",
            "tcp://127.0.0.1",
        ),
        *(
            "tcp://127.0.0.1:99999",
            "tcp://127.0.0.1:\u0663",
            "tcp://127.0.0.1:-1",
            "tcp://127.0.0.1:" + "9" * 9999,
        ),
        *("tcp://[::1:5", "udp://127.0.0.1:5", "inproc://x", "tcp://127.0.0.1:5:6", "tcp://:5", "tcp://*:5"),
    ],
    ids=lambda text: text[:30],
)
def test_addresses_that_nobody_can_use(address: str) -> None:
    with pytest.raises(ConfigError):
        check_address(address)
        Listener(address, ToDecode).close()


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://[", "http://127.0.0.1:99999", "http://127.0.0.1:x", "http://", "x"]
)
def test_urls_of_servers_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--prefill .*server's address"):
        check_url(url, "--prefill")


def test_hosts_that_are_none() -> None:
    for host in ("a" * 300, ".", "a" * 64 + ".b", "\u2028", "[::1]"):
        with pytest.raises(ConfigError, match="--host"):
            check_port(host, 0)
