"""The classes of a KV transfer backend, as SGLang names them: manager, sender and bootstrap server.

A sender is one prompt's hand-over. SGLang asks it for its state once per turn (`poll`) and tells it which
pages have been computed (`send`). The protocol is `xgr_runtime.handover.protocol`, the sending
`xgr_runtime.handover.outbound`.
"""

import time
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.disaggregation.base import (
    BaseKVBootstrapServer,
    BaseKVManager,
    BaseKVSender,
    KVPoll,
)
from sglang.srt.disaggregation.base.conn import KVTransferMetric
from sglang.srt.distributed import get_tp_group

from xgr_runtime.config import switched_on
from xgr_runtime.errors import BadRequest, RequestError
from xgr_runtime.handover.outbound import Outbound
from xgr_runtime.handover.protocol import FIRST_LEASE, SenderState
from xgr_runtime.handover.transfer import Transfer
from xgr_runtime.kv.pages import pages_for
from xgr_runtime.model.sglang.transfer.introduction import model_identity, refuse_layout, worker_name
from xgr_runtime.model.sglang.transfer.memory import GatheredPromptKv, PagedPromptKv, PromptKv, SglangKv
from xgr_runtime.model.sglang.versions import check_version, installed_version
from xgr_runtime.wire.sglang_ticket import SglangTicket
from xgr_runtime.worker.control import new_incarnation

CHUNK_BYTES = 1 << 20


class ZmqKVManager(BaseKVManager):
    """All hand-overs of one SGLang scheduler. Under tensor parallelism the first rank alone talks."""

    def __init__(
        self, args: Any, disaggregation_mode: Any, server_args: Any, is_mla_backend: bool | None = False
    ) -> None:
        check_version(installed_version() or "", switched_on("sglang_any_version"))
        model = ModelConfig.from_server_args(server_args)
        refuse_layout(args, disaggregation_mode, server_args, model, bool(is_mla_backend))
        self.kv_args = args  # SGLang reads it
        self.memory = SglangKv(args, server_args.device)
        self.talks = args.engine_rank == 0
        self._tp_size: int = server_args.tp_size
        self.identity = model_identity(args, server_args, model, self.memory)
        self.incarnation = new_incarnation()
        self.name = worker_name(server_args)
        self.outbound = Outbound(self.name, self.incarnation, self.identity, CHUNK_BYTES, FIRST_LEASE)
        self.exchanges = 0

    def register_to_bootstrap(self) -> None:
        """Routers ask `/server_info`; there is nowhere to register."""

    def exchange(self) -> None:
        """Everything in, everything out that may leave; forget what is over."""
        self.exchanges += 1
        now = time.monotonic()
        self.outbound.exchange(now)
        self.outbound.expire(now)
        self.outbound.retire()  # SGLang itself logs what failed

    def prompt_kv(self, tokens: int) -> PromptKv:
        """Where the KV of a prompt of `tokens` tokens will be read. Raises `BadRequest`."""
        if tokens > self.memory.slots:
            raise BadRequest(f"the ticket names {tokens} tokens, there is room for {self.memory.slots}")
        if self._tp_size == 1:
            return PagedPromptKv(self.memory)
        return GatheredPromptKv(self.memory, tokens, get_tp_group().cpu_group)

    def open(self, ticket: SglangTicket, kv: PromptKv) -> Transfer:
        """Announce the prompt to its decode worker. Raises `BadRequest`."""
        if ticket.id.prefill != self.incarnation or ticket.id in self.outbound.transfers:
            raise BadRequest("the ticket in bootstrap_host is of another time: ask the router for a new one")
        now = time.monotonic()
        return self.outbound.open(
            ticket.id, ticket.prompt_tokens, ticket.data_address, now + ticket.timeout, 0.0, kv, now
        )


class ZmqKVSender(BaseKVSender):
    """The hand-over of one prompt's KV to a decode worker of ours.

    SGLang runs the prompt once `poll` says WaitingForInput, when the decode worker holds pages for it. So
    pages here are held only by prompts that have theirs there: two full pools cannot wait for each other.
    """

    def __init__(self, mgr: ZmqKVManager, bootstrap_addr: str, bootstrap_room: int, **_: Any) -> None:
        self.kv_mgr = mgr
        self._pages: NDArray[np.int32] = np.empty(0, np.int32)
        self._tokens = 0  # of which KV is in the pages
        self.cached_tokens = 0  # of which SGLang's radix cache had it; the plugin says
        self._started = self._sent = time.monotonic()
        self._refused: RequestError | None = None
        self._transfer: Transfer | None = None  # the first rank's
        self._seen = mgr.exchanges
        try:
            self._ticket = SglangTicket.from_text(bootstrap_addr.rpartition(":")[0])
            self._kv = mgr.prompt_kv(self._ticket.prompt_tokens)
            self._transfer = mgr.open(self._ticket, self._kv) if mgr.talks else None
        except RequestError as error:
            self._refused = error

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """The prompt is about to run and will have this many pages."""
        self._started = time.monotonic()
        expected = pages_for(self._ticket.prompt_tokens, self.kv_mgr.memory.page_size)
        if self._transfer and num_kv_indices != expected:
            self._transfer.fail(f"the prompt has {num_kv_indices} pages, its ticket says {expected}")

    def send(
        self,
        kv_indices: NDArray[np.int32],
        state_indices: list[Any] | None = None,
        num_kv_tokens: int | None = None,
    ) -> None:
        """KV of all layers is in these further pages, which stay ours until `poll` has told the end."""
        before, memory = self._tokens, self.kv_mgr.memory
        self._pages = np.concatenate([self._pages, np.asarray(kv_indices, np.int32)])
        self._tokens = min(len(self._pages) * memory.page_size, self._ticket.prompt_tokens)
        self._kv.extend(self._pages, before, self._tokens - before)  # on every rank, or the others wait
        self._sent = time.monotonic()
        if self._transfer is None or self._transfer.over:
            return
        for layer in range(memory.layers):
            self._transfer.layer_ready(layer, self._tokens)
        if self._tokens == self._ticket.prompt_tokens:
            self._transfer.prompt_ready(self._sent - self._started, None, self.cached_tokens)
        self._exchange()
        self._transfer.flush()

    def poll(self) -> int:
        """Where the hand-over stands, as SGLang's `KVPoll`; it takes the least of all ranks' answers."""
        if not self.kv_mgr.talks:
            return int(KVPoll.Success)
        if self._transfer is None:
            return int(KVPoll.Failed)
        self._exchange()
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
        raise self._refused or (self._transfer and self._transfer.failure) or _SaidByTheFirstRank()

    def abort(self) -> None:
        """SGLang gives the prompt up; its pages may be reused at once."""
        if self._transfer and not self._transfer.over:
            self._transfer.fail("SGLang aborted the request")
            self.kv_mgr.outbound.retire()

    def get_transfer_metric(self) -> KVTransferMetric:
        """Seconds from the last page to the end, and bytes, for SGLang's own metrics."""
        memory = self.kv_mgr.memory
        return KVTransferMetric(
            transfer_latency_s=time.monotonic() - self._sent,
            transfer_total_bytes=2 * memory.layers * memory.token_bytes * self._tokens,
        )

    def _exchange(self) -> None:
        """Once in a turn of SGLang's, for all of its prompts: when one of them comes by again."""
        if self._seen == self.kv_mgr.exchanges:
            self.kv_mgr.exchange()
        self._seen = self.kv_mgr.exchanges


class _SaidByTheFirstRank(Exception):
    """What SGLang's other ranks raise; the attribute keeps them from logging it once more."""

    is_from_another_rank = True


class NoBootstrapServer(BaseKVBootstrapServer):
    """SGLang starts one per prefill server. Ours listens nowhere: routers read `/server_info` instead."""

    def __init__(self, host: str, port: int) -> None:
        pass
