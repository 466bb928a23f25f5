"""Workers that run on a Ray cluster: a named actor, the deployment's controller, knows their addresses."""

from xgr_runtime.discovery.ray.directory import NAMESPACE, Directory

__all__ = ["NAMESPACE", "Directory"]
