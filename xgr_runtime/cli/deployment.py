"""What commands that ask a running deployment share: its address, its key, what its refusals mean."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from xgr_runtime.config import check_secret
from xgr_runtime.errors import ConfigError, InternalError, NotFound, RequestError, XgrError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from xgr_runtime.client import XgrClient


class DeploymentError(XgrError):
    """A deployment refused, or nothing answered; the message says why and what to change."""


def add_deployment_flags(
    parser: argparse.ArgumentParser,
    url: str = "http://127.0.0.1:30000",
    what: str = "where the router answers (default: %(default)s)",
) -> None:
    """`--url` and `--api-key`, which `asking` reads. `url` is the default, `what` its help."""
    parser.add_argument("--url", default=url, help=what)
    parser.add_argument(
        "--api-key",
        default=os.environ.get("XGR_ADMIN_API_KEY") or os.environ.get("XGR_API_KEY") or None,
        help="admin key of the deployment, if it has one, else its key (default: the environment's "
        "XGR_ADMIN_API_KEY or XGR_API_KEY)",
    )


@contextlib.contextmanager
def asking(args: argparse.Namespace, timeout: float) -> Iterator[XgrClient]:
    """A client of the deployment that the flags name.

    timeout: seconds without a byte from it. Raises `DeploymentError` for whatever it or the network refuses,
    `ConfigError` for what is no URL or key.
    """
    import httpx
    import msgspec

    from xgr_runtime.client import XgrClient

    url = args.url
    if args.api_key:
        check_secret(args.api_key, "--api-key, or the variable of the environment in its place,")
    try:
        with XgrClient(url, args.api_key, timeout=timeout) as client:
            yield client
    except msgspec.MsgspecError:
        raise DeploymentError(f"{url} is not an xgr router: it answers something else") from None
    except NotFound as error:
        older = error.message.startswith("there is no /")
        raise DeploymentError(
            f"the router at {url} is older than this command: upgrade it ({error})" if older else str(error)
        ) from None
    except InternalError as error:
        raise DeploymentError(f"{url} is not an xgr router, or failed: {error}") from None
    except RequestError as error:
        hint = ": use --api-key, XGR_ADMIN_API_KEY or XGR_API_KEY" if error.status in (401, 403) else ""
        raise DeploymentError(f"{url} refused: {error}{hint}") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise ConfigError(f"--url {url!r} is no URL ({error}): try http://127.0.0.1:30000") from None
    except httpx.ConnectError:
        raise DeploymentError(f"nothing listens at {url}: start `xgr serve`, or give its --url") from None
    except httpx.TransportError as error:
        raise DeploymentError(
            f"{url} gave no answer ({type(error).__name__}): look at the router's log"
        ) from None
