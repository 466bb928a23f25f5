"""The KV transfer backend alone, with SGLang's own types: what it hands over, and how it ends.

The test plays SGLang's scheduler, which polls and sends, and the decode worker, over a real socket.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.disaggregation import utils
from sglang.srt.disaggregation.base import KVArgs, KVPoll
from sglang.srt.disaggregation.utils import DisaggregationMode

from decode_worker.links import PrefillLinks
from xgr_runtime.checkpoint import read_config
from xgr_runtime.errors import ConfigError, ModelError, XgrError
from xgr_runtime.handover.protocol import Receiver
from xgr_runtime.kv.pages import pages_for
from xgr_runtime.model.sglang.transfer.backend import ZmqKVManager, ZmqKVSender
from xgr_runtime.model.sglang.transfer.plugin import BACKEND, our_class_or, tell_cached_tokens, with_ours
from xgr_runtime.transport import Listener
from xgr_runtime.wire.messages import (
    Ack,
    AttemptId,
    Cancel,
    Commit,
    Credit,
    KvChunk,
    Message,
    Nack,
    Open,
    ToDecodeData,
)
from xgr_runtime.wire.sglang_ticket import SglangTicket

SLOTS = 96
PAGE_SIZES = (1, 16)
Pool = tuple[list[torch.Tensor], list[torch.Tensor]]


class PlayedDecode:
    """Takes one prompt's KV as a decode worker does: grants when told to, keeps what comes."""

    def __init__(self, address: str, manager: ZmqKVManager) -> None:
        listener: Listener[Message] = Listener(address, ToDecodeData, 4 << 20)
        self.links = PrefillLinks(listener, 44, manager.identity)
        self.manager = manager
        self.grants = True
        self.told: list[Message] = []
        self.keys: dict[int, list[bytes]] = {}
        self.values: dict[int, list[bytes]] = {}
        self.receiver: Receiver | None = None
        self.peer = b""
        self.committed = False
        self.cached_tokens = 0

    def expect(self, id: AttemptId, tokens: int) -> None:
        identity = self.manager.identity
        layer_bytes = 2 * identity.kv_heads * identity.head_dim * 4
        self.receiver = Receiver(
            id, tokens, identity.layers, identity.kv_heads, layer_bytes, 4 * identity.hidden
        )

    def turn(self) -> None:
        """Everything that is here."""
        assert self.receiver is not None
        for received in self.links.receive():
            self.peer = received.peer
            self.told.append(received.message)
            match received.message:
                case Open() as message:
                    assert self.receiver.open(message) is None
                case KvChunk() as message:
                    keys, values = received.frames
                    reply = self.receiver.chunk(message, keys, values)
                    assert isinstance(reply, Credit), reply
                    self.keys.setdefault(message.first_layer, []).append(bytes(keys))
                    self.values.setdefault(message.first_layer, []).append(bytes(values))
                    self.links.send(self.peer, reply)
                case Commit() as message:
                    assert not received.frames, "SGLang has no hidden state to send"
                    assert self.receiver.commit(message, None) is None
                    reply = self.receiver.release()  # type: ignore[assignment]
                    assert isinstance(reply, Ack), reply
                    self.committed, self.cached_tokens = True, message.cached_tokens
                    self.links.send(self.peer, reply)
        if self.grants and self.receiver.wants_pages:
            self.links.send(self.peer, self.receiver.grant(4, 15.0))


@pytest.fixture(params=PAGE_SIZES, ids="page={}".format)
def page_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def pool(checkpoint: Path) -> Pool:
    """Random keys and values of every layer, [slots, heads, head_dim] each."""
    config = read_config(checkpoint)
    heads = config["num_key_value_heads"]
    shape = (SLOTS, heads, config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    draw = torch.Generator().manual_seed(1)
    layers = range(config["num_hidden_layers"])
    return [torch.randn(shape, generator=draw) for _ in layers], [
        torch.randn(shape, generator=draw) for _ in layers
    ]


def kv_args(pool: Pool, page_size: int) -> Any:
    """SGLang's description of that pool."""
    args = KVArgs()
    buffers = [*pool[0], *pool[1]]
    args.kv_data_ptrs = [x.data_ptr() for x in buffers]
    args.kv_data_lens = [x.nbytes for x in buffers]
    args.kv_item_lens = [x[0].nbytes * page_size for x in buffers]
    args.page_size = page_size
    args.kv_head_num = args.total_kv_head_num = pool[0][0].shape[1]
    args.state_types = []
    args.engine_rank = 0
    return args


def server_args(checkpoint: Path, **other: Any) -> Any:
    """What the backend reads of SGLang's settings."""
    plain = {"model_path": str(checkpoint), "load_format": "auto", "kv_cache_dtype": "auto"}
    return SimpleNamespace(
        **{**plain, "device": "cpu", "port": 1, "tp_size": 1, "pp_size": 1, "dp_size": 1, **other}
    )


@pytest.fixture(autouse=True)
def model_config(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backend reads of SGLang's `ModelConfig`, without SGLang's start."""
    config = read_config(checkpoint)
    fields = {name: config[name] for name in ("num_hidden_layers", "hidden_size", "vocab_size")}
    model = SimpleNamespace(dtype=torch.float32, **fields)
    made = SimpleNamespace(from_server_args=lambda _: model)
    monkeypatch.setattr("xgr_runtime.model.sglang.transfer.backend.ModelConfig", made)


@pytest.fixture
def manager(checkpoint: Path, pool: Pool, page_size: int) -> ZmqKVManager:
    return ZmqKVManager(kv_args(pool, page_size), DisaggregationMode.PREFILL, server_args(checkpoint))


@pytest.fixture
def decode(manager: ZmqKVManager, tmp_path: Path) -> Iterator[PlayedDecode]:
    tmp_path.chmod(0o700)
    played = PlayedDecode(f"ipc://{tmp_path}/d", manager)
    yield played
    played.links.listener.close()


def make_sender(manager: ZmqKVManager, decode: PlayedDecode, tokens: int, timeout: float = 30.0) -> Any:
    id = AttemptId(1, 2, 1, manager.incarnation, 44)
    decode.expect(id, tokens)
    ticket = SglangTicket(id, decode.links.listener.address, tokens, timeout)
    return ZmqKVSender(manager, f"{ticket.to_text()}:8998", 7)


def poll_until(sender: Any, decode: PlayedDecode, state: int) -> None:
    """SGLang's loop and the decode worker's, in turns."""
    until = time.monotonic() + 10
    while (found := sender.poll()) != state:
        assert time.monotonic() < until, f"state {found}, expected {state}; decode heard {decode.told}"
        decode.turn()
        time.sleep(0.001)


def pages_of(tokens: int, page_size: int) -> np.ndarray:
    """Scattered pages, as a radix cache leaves them."""
    order = np.random.default_rng(0).permutation(SLOTS // page_size).astype(np.int32)
    return order[: pages_for(tokens, page_size)]


@pytest.mark.parametrize("pieces", [1, 3], ids="pieces={}".format)
@pytest.mark.parametrize("tokens", [1, 16, 41, 96], ids="L={}".format)
def test_every_byte_arrives(
    manager: ZmqKVManager, decode: PlayedDecode, pool: Pool, page_size: int, tokens: int, pieces: int
) -> None:
    sender = make_sender(manager, decode, tokens)
    assert sender.poll() == KVPoll.Bootstrapping, "no page is held before the decode worker holds its own"
    poll_until(sender, decode, KVPoll.WaitingForInput)
    pages = pages_of(tokens, page_size)
    sender.init(len(pages))
    tell_cached_tokens(None, SimpleNamespace(disagg_kv_sender=sender, cached_tokens=tokens // 2))
    for piece in np.array_split(pages, pieces):
        if len(piece):
            assert sender.poll() in (KVPoll.WaitingForInput, KVPoll.Transferring)
            sender.send(piece)
            decode.turn()
    poll_until(sender, decode, KVPoll.Success)
    assert decode.committed and decode.cached_tokens == tokens // 2
    token = np.arange(tokens)
    slots = torch.from_numpy(pages[token // page_size].astype(np.int64) * page_size + token % page_size)
    for buffers, received in zip(pool, (decode.keys, decode.values), strict=True):
        for layer, buffer in enumerate(buffers):
            assert b"".join(received[layer]) == buffer[slots].numpy().tobytes(), f"layer {layer}"
    sender.clear()
    assert not manager.outbound.transfers
    assert sender.get_transfer_metric().transfer_total_bytes == 2 * tokens * sum(x[0].nbytes for x in pool[0])


def test_an_aborted_prompt_tells_the_decode_worker(manager: ZmqKVManager, decode: PlayedDecode) -> None:
    sender = make_sender(manager, decode, 16)
    poll_until(sender, decode, KVPoll.WaitingForInput)
    sender.abort()
    assert sender.poll() == KVPoll.Failed
    with pytest.raises(XgrError, match="aborted"):
        sender.failure_exception()
    deadline = time.monotonic() + 5
    while not any(isinstance(message, Cancel) for message in decode.told):
        assert time.monotonic() < deadline
        decode.turn()
    assert not manager.outbound.transfers


def test_a_decode_worker_that_gives_up_fails_the_prompt(manager: ZmqKVManager, decode: PlayedDecode) -> None:
    sender = make_sender(manager, decode, 16)
    poll_until(sender, decode, KVPoll.WaitingForInput)
    assert decode.receiver is not None
    nack = decode.receiver.fail("cancelled by the router")
    assert isinstance(nack, Nack)
    decode.links.send(decode.peer, nack)
    poll_until(sender, decode, KVPoll.Failed)
    sender.send(pages_of(16, manager.memory.page_size))  # the forward that was under way; nothing leaves
    assert not any(isinstance(message, KvChunk) for message in decode.told)
    with pytest.raises(XgrError, match="cancelled by the router"):
        sender.failure_exception()


def test_a_deadline_ends_a_prompt_that_waits(manager: ZmqKVManager, decode: PlayedDecode) -> None:
    decode.grants = False
    sender = make_sender(manager, decode, 16, timeout=0.2)
    assert sender.poll() == KVPoll.Bootstrapping
    poll_until(sender, decode, KVPoll.Failed)
    with pytest.raises(XgrError, match="deadline"):
        sender.failure_exception()


def test_a_prompt_that_is_not_the_tickets_is_refused(manager: ZmqKVManager, decode: PlayedDecode) -> None:
    sender = make_sender(manager, decode, 40)
    poll_until(sender, decode, KVPoll.WaitingForInput)
    sender.init(len(pages_of(40, manager.memory.page_size)) + 1)
    assert sender.poll() == KVPoll.Failed


def test_a_ticket_of_another_time_is_refused(manager: ZmqKVManager, decode: PlayedDecode) -> None:
    """Of a run before this one, or used already."""
    first = make_sender(manager, decode, 16)
    again = make_sender(manager, decode, 16)
    manager.incarnation += 1
    (id,) = manager.outbound.transfers
    ticket = SglangTicket(id, decode.links.listener.address, 16, 30.0)
    stale = ZmqKVSender(manager, f"{ticket.to_text()}:1", 7)
    assert first.poll() == KVPoll.Bootstrapping
    for sender in (again, stale):
        assert sender.poll() == KVPoll.Failed
        with pytest.raises(XgrError, match="another time"):
            sender.failure_exception()


@pytest.mark.parametrize("page_size", [16], indirect=True)
def test_a_turn_of_many_prompts_is_one_exchange(
    manager: ZmqKVManager, decode: PlayedDecode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang polls each prompt in each turn; an exchange for all at each poll would cost their square."""
    made: list[float] = []
    exchange = manager.outbound.exchange
    monkeypatch.setattr(manager.outbound, "exchange", lambda now: made.append(now) or exchange(now))
    address = decode.links.listener.address
    ids = [AttemptId(1, number, 1, manager.incarnation, 44) for number in range(20)]
    senders = [ZmqKVSender(manager, f"{SglangTicket(id, address, 16, 30.0).to_text()}:1", 7) for id in ids]
    for turn in range(1, 6):
        assert {sender.poll() for sender in senders} == {KVPoll.Bootstrapping}
        assert len(made) == turn
        senders[turn].abort()  # SGLang polls it no more
        del senders[turn]
    assert len(made) == 5 and len(manager.outbound.transfers) == len(senders)


@pytest.mark.parametrize("address", ["127.0.0.1:8998", "None:8998", "xgr1.AAAA:8998", ":"])
def test_without_a_ticket(manager: ZmqKVManager, address: str) -> None:
    sender = ZmqKVSender(manager, address, 7)
    assert sender.poll() == KVPoll.Failed
    with pytest.raises(XgrError, match=r"bootstrap_host|ticket"):
        sender.failure_exception()
    sender.abort()


@pytest.mark.parametrize("tokens", [-1, 0, SLOTS + 1, 1 << 60], ids="L={}".format)
def test_a_ticket_for_no_prompt_that_fits_is_refused(manager: ZmqKVManager, tokens: int) -> None:
    """Before memory is taken for it: an error there would end SGLang's scheduler."""
    ticket = SglangTicket(AttemptId(1, 2, 1, manager.incarnation, 4), "ipc:///x", tokens, 1.0)
    sender = ZmqKVSender(manager, f"{ticket.to_text()}:1", 7)
    assert sender.poll() == KVPoll.Failed
    with pytest.raises(XgrError, match=r"ticket.*(1|room)"):
        sender.failure_exception()


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:5", "nonsense", "ipc:///nowhere/at/all"])
def test_an_address_that_is_not_local_is_refused(manager: ZmqKVManager, address: str) -> None:
    ticket = SglangTicket(AttemptId(1, 2, 1, manager.incarnation, 4), address, 7, 1.0)
    sender = ZmqKVSender(manager, f"{ticket.to_text()}:1", 7)
    assert sender.poll() == KVPoll.Failed
    assert not manager.outbound.transfers


@pytest.mark.parametrize(
    ("settings", "args", "named"),
    [
        ({"pp_size": 2}, {}, "--pp-size"),
        ({"dp_size": 2}, {}, "--dp-size"),
        ({"tp_size": 3}, {}, "KV heads"),
        ({"quantization": "fp8"}, {}, "--quantization fp8"),
        ({"json_model_override_args": '{"rope_theta": 1}'}, {}, "--json-model-override-args"),
        ({"load_format": "dummy"}, {}, "--load-format dummy"),
        ({"kv_cache_dtype": "fp8_e4m3"}, {}, "--kv-cache-dtype"),
        ({"kv_cache_dtype": "bf16"}, {}, "--kv-cache-dtype"),
        ({}, {"state_types": ["mamba"]}, "plain keys and values"),
        ({}, {"kv_data_ptrs": [1] * 100}, "plain keys and values"),
    ],
    ids=["pipeline", "data", "tensor", "weights", "config", "dummy", "fp8 KV", "other KV", "state", "draft"],
)
@pytest.mark.parametrize("page_size", [1], indirect=True)
def test_what_cannot_be_handed_over_is_refused_at_start(
    manager: ZmqKVManager,
    checkpoint: Path,
    pool: Pool,
    settings: dict[str, Any],
    args: dict[str, Any],
    named: str,
) -> None:
    wrong = kv_args(pool, 1)
    for field, value in args.items():
        setattr(wrong, field, value)
    with pytest.raises(ConfigError, match=named):
        ZmqKVManager(wrong, DisaggregationMode.PREFILL, server_args(checkpoint, **settings))


@pytest.mark.parametrize("page_size", [1], indirect=True)
def test_an_untested_release_is_refused_unless_told_to_try(
    manager: ZmqKVManager, checkpoint: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> ZmqKVManager:
        return ZmqKVManager(kv_args(pool, 1), DisaggregationMode.PREFILL, server_args(checkpoint))

    monkeypatch.setattr("xgr_runtime.model.sglang.transfer.backend.installed_version", lambda: "0.9.0")
    with pytest.raises(ModelError, match=r"0\.9\.0 was not tested.*XGR_SGLANG_ANY_VERSION"):
        start()
    monkeypatch.setenv("XGR_SGLANG_ANY_VERSION", "true")
    assert start().identity == manager.identity


def test_sglang_has_no_decode_side_here(checkpoint: Path, pool: Pool) -> None:
    with pytest.raises(ConfigError, match="--disaggregation-mode prefill"):
        ZmqKVManager(kv_args(pool, 1), DisaggregationMode.DECODE, server_args(checkpoint))


def test_sglang_gets_our_classes_for_our_backend_alone() -> None:
    backends = with_ours(utils.TransferBackend)
    assert [member.value for member in backends] == [*(m.value for m in utils.TransferBackend), BACKEND]
    kinds = [kind for kind in utils.KVClassType if kind.name != "RECEIVER"]
    for member in backends:
        for kind in kinds:
            found = our_class_or(lambda *asked: asked, member, kind)
            assert isinstance(found, type) == (member.value == BACKEND), (member, kind)
            if member.value != BACKEND:
                assert found == (member, kind)
