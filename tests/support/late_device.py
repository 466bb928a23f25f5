"""A device that lags as far behind as it may: what is queued runs when somebody waits for it, in order.

So a copy out of host memory reads what is there by then, and a plan or an input that was written too early is
read by the launch before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flashinfer_stand_in import Stream
from torch import Tensor

from xgr_kernels.attention.paged import PagedAttention
from xgr_runtime.model.device.device import Event, HostDevice, Work


class LateDevice(HostDevice):
    """Its queue is `stream`; inside of `stream.held()` nothing runs before it must."""

    def __init__(self, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = stream
        real = torch.Tensor.copy_

        def copy_(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
            if non_blocking:
                stream.launch(lambda: copy_(target, source))  # type: ignore[arg-type, return-value]
                return target
            with torch.inference_mode():  # what engines made inside of it is written to outside
                return real(target, source)

        plan = PagedAttention.plan

        def plan_all_rows(attention: PagedAttention, *args: Any) -> None:
            """A captured call has all rows, whatever was planned last when it runs."""
            plan(attention, *args)
            attention._planned_rows = attention._wrapper._rows = attention.rows

        monkeypatch.setattr(torch.Tensor, "copy_", copy_)
        monkeypatch.setattr(PagedAttention, "plan", plan_all_rows)

    def later(self, work: Callable[..., Any]) -> Callable[..., None]:
        """`work` as launches: it returns at once."""

        def launch(*args: Any, **kwargs: Any) -> None:
            def run() -> None:
                with torch.inference_mode():
                    work(*args, **kwargs)

            self.stream.launch(run)

        return launch

    def capture(self, work: Work) -> Work:
        return self.later(work)

    def event(self) -> Event:
        return _LateEvent(self.stream)


class _LateEvent:
    """Whoever asks whether it has passed gives the device time for one piece of work."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._mark = stream, 0

    def record(self) -> None:
        self._mark = self._stream.launched

    def done(self) -> bool:
        self._stream.run(min(self._stream.done + 1, self._mark))
        return self._stream.done >= self._mark

    def wait(self) -> None:
        self._stream.run(self._mark)
