"""How many cores a process may keep busy: those that are visible, or what a control group's quota bears."""

import os
from pathlib import Path

import pytest

from xgr_runtime.config.machine import cores

VISIBLE = 8
PERIOD = "cpu.cfs_period_us"


@pytest.fixture(autouse=True)
def visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(VISIBLE)))


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        ("0::/app/xgr", {"sys/fs/cgroup/app/xgr/cpu.max": "100000 100000"}, 1),
        ("0::/app/xgr", {"sys/fs/cgroup/app/xgr/cpu.max": "350000 100000"}, 3),
        ("0::/app/xgr", {"sys/fs/cgroup/app/xgr/cpu.max": "20000 100000"}, 1),
        ("0::/app/xgr", {"sys/fs/cgroup/app/xgr/cpu.max": "max 100000"}, VISIBLE),
        ("0::/app/xgr", {"sys/fs/cgroup/app/xgr/cpu.max": "9900000 100000"}, VISIBLE),
        # The group around it is held to less than its own.
        (
            "0::/app/xgr",
            {
                "sys/fs/cgroup/app/xgr/cpu.max": "max 100000",
                "sys/fs/cgroup/app/cpu.max": "200000 100000",
            },
            2,
        ),
        ("0::/docker/0123", {"sys/fs/cgroup/cpu.max": "50000 25000"}, 2),  # named as the host sees it
        (
            "3:cpu,cpuacct:/xgr\n0::/",
            {
                f"sys/fs/cgroup/cpu,cpuacct/xgr/{name}": v
                for name, v in (("cpu.cfs_quota_us", "400000"), (PERIOD, "100000"))
            },
            4,
        ),
        (
            "3:cpu:/xgr",
            {
                f"sys/fs/cgroup/cpu/xgr/{name}": v
                for name, v in (("cpu.cfs_quota_us", "-1"), (PERIOD, "100000"))
            },
            VISIBLE,
        ),
        (
            "9:cpu,cpuacct:/0",
            {
                f"sys/fs/cgroup/cpu/{name}": v
                for name, v in (("cpu.cfs_quota_us", "150000"), (PERIOD, "50000"))
            },
            3,
        ),
        ("0::/", {"sys/fs/cgroup/cpu.max": "7 0"}, VISIBLE),
        ("0::/", {"sys/fs/cgroup/cpu.max": "nonsense"}, VISIBLE),
        ("0::/", {}, VISIBLE),
    ],
)
def test_the_smallest_limit_counts(groups: str, files: dict[str, str], count: int, tmp_path: Path) -> None:
    found = cores(machine(tmp_path, groups, files))
    assert found.count == count
    said = "quota" if count < VISIBLE else "may run on"
    assert said in found.limit and f"{VISIBLE} " in found.limit


def test_without_proc(tmp_path: Path) -> None:
    assert cores(tmp_path).count == VISIBLE
