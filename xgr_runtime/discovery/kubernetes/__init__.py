"""Workers that run as pods of a Kubernetes cluster: those with certain labels, as its API tells of them."""

from xgr_runtime.discovery.kubernetes.account import Account
from xgr_runtime.discovery.kubernetes.api import Api
from xgr_runtime.discovery.kubernetes.follower import Follower
from xgr_runtime.discovery.kubernetes.source import PodSource

__all__ = ["Account", "Api", "Follower", "PodSource"]
