"""What every process asks of the system."""

import resource
from collections.abc import Iterator

import pytest

from xgr_runtime.process import allow_many_descriptors


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """The soft limit as many systems set it; the hard one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_takes_all_descriptors_that_it_may_have(few_descriptors: int) -> None:
    allow_many_descriptors()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few_descriptors, few_descriptors)
