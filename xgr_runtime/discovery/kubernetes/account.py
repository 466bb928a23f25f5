"""What a pod is given to speak with its cluster's API: a token, whom to trust, its namespace."""

from pathlib import Path

from xgr_runtime.errors import ConfigError
from xgr_runtime.files import open_ordinary

MOST_BYTES = 1 << 16


class Account:
    """The files of a service account. They are read anew for each request: tokens are replaced hourly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def authority(self) -> Path:
        """Certificates, as PEM, of who may sign the API's."""
        return self._folder / "ca.crt"

    def token(self) -> str:
        """Raises `ConfigError`."""
        return self._text("token")

    def namespace(self) -> str:
        """That of the pod. Raises `ConfigError`."""
        return self._text("namespace")

    def _text(self, name: str) -> str:
        path = self._folder / name
        try:
            with open_ordinary(path) as file:
                raw = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"{path} cannot be read ({reason}): run the router in a pod whose service account is "
                "mounted, or name another folder by --kubernetes-account"
            ) from None
        text = raw.decode("ascii", "replace").strip()
        if not text or len(raw) > MOST_BYTES or not text.isascii() or not text.isprintable() or " " in text:
            raise ConfigError(f"{path} is not one word of text: mount the pod's service account there")
        return text
