"""A KV transfer backend's four classes, as SGLang names them: manager, sender, receiver, bootstrap server.

A sender is one prompt's hand-over. SGLang asks it for its state once per turn (`poll`) and tells it which
pages have been computed (`send`). The protocol is `xgr_runtime.handover`, the sending `xgr_runtime.outbound`.
"""

import time
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.disaggregation.base import (
    BaseKVBootstrapServer,
    BaseKVManager,
    BaseKVReceiver,
    BaseKVSender,
    KVPoll,
)
from sglang.srt.disaggregation.base.conn import KVTransferMetric

from xgr_runtime.control import new_incarnation
from xgr_runtime.errors import ConfigError, RequestError
from xgr_runtime.handover import Chunk, SenderState
from xgr_runtime.model.sglang.transfer.introduction import model_identity, refuse_layout, worker_name
from xgr_runtime.model.sglang.transfer.memory import SglangKv
from xgr_runtime.outbound import Outbound, Transfer
from xgr_runtime.pages import pages_for
from xgr_runtime.ticket import Ticket

LEASE = 15.0  # seconds that a decode worker may keep us waiting without a word
CHUNK_BYTES = 1 << 20


class ZmqKVManager(BaseKVManager):
    """All hand-overs of one SGLang scheduler."""

    def __init__(
        self, args: Any, disaggregation_mode: Any, server_args: Any, is_mla_backend: bool | None = False
    ) -> None:
        refuse_layout(args, disaggregation_mode, server_args, bool(is_mla_backend))
        self.kv_args = args  # SGLang reads it
        self.memory = SglangKv(args, server_args.device)
        dtype = str(ModelConfig.from_server_args(server_args).dtype)
        self.identity = model_identity(args, server_args, dtype, self.memory)
        self.incarnation = new_incarnation()
        self.name = worker_name(server_args)
        self.outbound = Outbound(self.name, self.incarnation, self.identity, CHUNK_BYTES, LEASE)

    def register_to_bootstrap(self) -> None:
        """Routers ask `/server_info`; there is nowhere to register."""

    def exchange(self) -> None:
        """Everything in, everything out that may leave; forget what is over."""
        now = time.monotonic()
        self.outbound.exchange(now)
        self.outbound.expire(now)
        self.outbound.retire()  # SGLang itself logs what failed


class ZmqKVSender(BaseKVSender):
    """The hand-over of one prompt's KV to a decode worker of ours.

    SGLang runs the prompt once `poll` says WaitingForInput, when the decode worker holds pages for it. So
    pages here are held only by prompts that have theirs there: two full pools cannot wait for each other.
    """

    def __init__(
        self,
        mgr: ZmqKVManager,
        bootstrap_addr: str,
        bootstrap_room: int,
        dest_tp_ranks: list[int],
        pp_rank: int,
        req_has_disagg_prefill_dp_rank: bool = False,
    ) -> None:
        self.kv_mgr = mgr
        self._pages: NDArray[np.int32] = np.empty(0, np.int32)
        self._tokens = 0  # of which KV is in the pages
        self._started = self._sent = time.monotonic()
        self._refused: RequestError | None = None
        self._transfer: Transfer | None = None
        try:
            self._ticket = Ticket.from_text(bootstrap_addr.rpartition(":")[0])
            self._transfer = self._open()
        except RequestError as error:
            self._refused = error

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """The prompt is about to run and will have this many pages."""
        self._started = time.monotonic()
        expected = pages_for(self._ticket.prompt_tokens, self.kv_mgr.memory.page_size)
        if self._transfer and num_kv_indices != expected:
            reason = f"the prompt has {num_kv_indices} pages, its ticket says {expected}"
            self._transfer.fail(reason)

    def send(
        self,
        kv_indices: NDArray[np.int32],
        state_indices: list[Any] | None = None,
        num_kv_tokens: int | None = None,
    ) -> None:
        """KV of all layers is in these further pages, which stay ours until `poll` has told the end."""
        memory, prompt_tokens = self.kv_mgr.memory, self._ticket.prompt_tokens
        self._pages = np.concatenate([self._pages, np.asarray(kv_indices, np.int32)])
        self._tokens = min(len(self._pages) * memory.page_size, prompt_tokens)
        self._sent = time.monotonic()
        if self._transfer is None or self._transfer.over:
            return
        for layer in range(memory.layers):
            self._transfer.layer_ready(layer, self._tokens)
        if self._tokens == prompt_tokens:
            self._transfer.prompt_ready(self._sent - self._started, None)
        self.kv_mgr.exchange()

    def poll(self) -> int:
        """Where the hand-over stands, as SGLang's `KVPoll`."""
        if self._transfer is None:
            return int(KVPoll.Failed)
        self.kv_mgr.exchange()
        match self._transfer.sender.state:
            case SenderState.OPENED:
                return int(KVPoll.Bootstrapping)
            case SenderState.STREAMING | SenderState.COMMITTED:
                return int(KVPoll.Transferring if self._tokens else KVPoll.WaitingForInput)
            case SenderState.DONE:
                return int(KVPoll.Success)
            case SenderState.FAILED:
                return int(KVPoll.Failed)

    def failure_exception(self) -> NoReturn:
        """Raise why the hand-over failed; SGLang puts it into its answer."""
        raise self._error()

    def abort(self) -> None:
        """SGLang gives the prompt up; its pages may be reused at once."""
        if self._transfer and not self._transfer.over:
            self._transfer.fail("SGLang aborted the request")
            self.kv_mgr.exchange()

    def get_transfer_metric(self) -> KVTransferMetric:
        """Seconds from the last page to the end, and bytes, for SGLang's own metrics."""
        memory = self.kv_mgr.memory
        return KVTransferMetric(
            transfer_latency_s=time.monotonic() - self._sent,
            transfer_total_bytes=2 * memory.layers * memory.token_bytes * self._tokens,
        )

    def _open(self) -> Transfer:
        ticket, manager, now = self._ticket, self.kv_mgr, time.monotonic()
        return manager.outbound.open(
            ticket.id, ticket.prompt_tokens, ticket.data_address, now + ticket.timeout, 0.0, self._read, now
        )

    def _read(self, chunk: Chunk) -> tuple[memoryview, memoryview]:
        return self.kv_mgr.memory.read(chunk.first_layer, self._pages, chunk.start, chunk.count)

    def _error(self) -> RequestError:
        if self._refused:
            return self._refused
        assert self._transfer and self._transfer.failure
        return self._transfer.failure


class ZmqKVReceiver(BaseKVReceiver):
    """There is none: decode workers are ours."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ConfigError("xgr_zmq has no decode side in SGLang: start `xgr serve --sglang-prefill URL`")


class NoBootstrapServer(BaseKVBootstrapServer):
    """SGLang starts one per prefill server. Ours listens nowhere: routers read `/server_info` instead."""

    def __init__(self, host: str, port: int) -> None:
        pass
