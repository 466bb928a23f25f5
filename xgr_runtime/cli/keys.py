"""`xgr keys new | public | kubernetes | api`: makes keys of links between machines, and of HTTP clients."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

API_KEY_BYTES = 32
ROLES = ("router", "prefill", "decode")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `keys` and its commands; each sets `func`, which returns the exit code or raises."""
    parser = subparsers.add_parser("keys", help="make keys for links between machines and for HTTP")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    about = "make the key of one process: writes NAME.key and prints the line for the others' --curve-allow"
    command = commands.add_parser("new", help=about, description=about)
    command.add_argument("name", metavar="NAME", help="of the process, as in tcp://HOST:PORT#NAME")
    command.add_argument(
        "--folder", type=Path, default=Path(), help="where the file is written (default: this folder)"
    )
    command.set_defaults(func=new)

    about = "print the public line of key files"
    command = commands.add_parser("public", help=about, description=about)
    command.add_argument("file", type=Path, nargs="+", help="that `xgr keys new` wrote")
    command.set_defaults(func=public)

    about = "print a Secret with new keys for the roles of a cluster, for `kubectl create --filename -`"
    command = commands.add_parser("kubernetes", help=about, description=about)
    command.add_argument(
        "--name", default="xgr-links", help="of the Secret, keys.secret of the chart (default: xgr-links)"
    )
    command.set_defaults(func=kubernetes)

    about = "print a random API key of 256 bits, for XGR_API_KEY or XGR_ADMIN_API_KEY"
    command = commands.add_parser("api", help=about, description=about)
    command.set_defaults(func=api)


def new(args: argparse.Namespace) -> int:
    """0 with the file written and its public line on stdout. Raises `ConfigError`."""
    from xgr_runtime.transport import new_key_pair
    from xgr_runtime.transport.keyring import check_name, write_key

    check_name(args.name)
    public, secret = new_key_pair()
    path = write_key(args.folder, args.name, secret)
    print(f"{path}: secret, for this process alone; the line below is for the others", file=sys.stderr)
    print(args.name, public)
    return 0


def public(args: argparse.Namespace) -> int:
    """0 with a line of name and public key for each file. Raises `ConfigError`."""
    from xgr_runtime.transport import public_key
    from xgr_runtime.transport.keyring import read_key

    lines = [(name, public_key(secret)) for name, secret in map(read_key, args.file)]
    for name, key in lines:
        print(name, key)
    return 0


def kubernetes(args: argparse.Namespace) -> int:
    """0 with the Secret on stdout, as JSON. All pods of a role have one key, under the role's name.

    Raises `ConfigError`, also where a terminal would show it.
    """
    from xgr_runtime.errors import ConfigError
    from xgr_runtime.transport import new_key_pair

    if sys.stdout.isatty():
        raise ConfigError("this prints secret keys: pipe it into `kubectl create --filename -`")
    pairs = {role: new_key_pair() for role in ROLES}
    files = {f"{role}.key": f"{role} {secret}\n" for role, (_, secret) in pairs.items()}
    allow = "".join(f"{role} {public}\n" for role, (public, _) in pairs.items())
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": args.name},
        "type": "Opaque",
        "stringData": files | {"allow": allow},
    }
    print(json.dumps(secret))
    return 0


def api(args: argparse.Namespace) -> int:
    """0 with a new key on stdout, and nowhere else."""
    print(secrets.token_hex(API_KEY_BYTES))
    return 0
