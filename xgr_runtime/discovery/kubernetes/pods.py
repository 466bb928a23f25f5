"""What of a pod matters to a router: its role, where it listens, and whose key it has."""

import msgspec

from xgr_runtime.discovery import WorkerAddress
from xgr_runtime.errors import ConfigError
from xgr_runtime.wire.messages import Role

ROLE_LABEL = "app.kubernetes.io/component"  # prefill or decode; pods with another are no workers
CONTROL_PORT = "control"  # the name of the container's port
KEY_ANNOTATION = "xgr-runtime/key"  # the name of its key in --curve-allow; without it that of its role
_ROLES: dict[str, Role] = {"prefill": "prefill", "decode": "decode"}


class _FromApi(msgspec.Struct, frozen=True, rename="camel"):
    """Fields that are not named here are passed over."""


class _Metadata(_FromApi, frozen=True):
    name: str
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Port(_FromApi, frozen=True):
    container_port: int
    name: str = ""


class _Container(_FromApi, frozen=True):
    ports: list[_Port] | None = None


class _Spec(_FromApi, frozen=True):
    containers: list[_Container]


class _State(_FromApi, frozen=True):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")


class Pod(_FromApi, frozen=True):
    """A pod of the API's version v1."""

    metadata: _Metadata
    spec: _Spec
    status: _State

    @property
    def role(self) -> Role | None:
        return _ROLES.get((self.metadata.labels or {}).get(ROLE_LABEL, ""))

    @property
    def serves(self) -> bool:
        """Whether it is a worker that runs and was not asked to end.

        Not whether it counts as ready: the router asks it by itself, and sooner knows better.
        """
        asked_to_end = self.metadata.deletion_timestamp is not None
        return bool(self.role and self.status.phase == "Running" and self.status.pod_ip and not asked_to_end)


class PodPage(msgspec.Struct, frozen=True):
    """A list of pods, or a part of it."""

    metadata: "_ListMetadata"
    items: list[Pod] | None = None


class _ListMetadata(_FromApi, frozen=True):
    resource_version: str = ""
    more: str = msgspec.field(name="continue", default="")


def address_of(pod: Pod) -> WorkerAddress:
    """Where the router talks to a pod that serves. Raises `ConfigError` that names the pod."""
    assert pod.role is not None, "a pod that serves has a role"
    ports = [port for container in pod.spec.containers for port in container.ports or ()]
    control = [port.container_port for port in ports if port.name == CONTROL_PORT]
    if len(control) != 1:
        raise ConfigError(
            f"pod {pod.metadata.name} has {len(control)} ports named {CONTROL_PORT}: give one container one, "
            "that of --control-address"
        )
    ip = pod.status.pod_ip
    host = f"[{ip}]" if ":" in ip else ip
    key = (pod.metadata.annotations or {}).get(KEY_ANNOTATION) or pod.role
    return WorkerAddress(pod.role, f"tcp://{host}:{control[0]}#{key}")
