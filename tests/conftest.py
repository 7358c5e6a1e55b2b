"""Fixtures that the whole suite shares."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ranks import RankPool

from ltexp.config.path import VARIABLE

torch.set_num_threads(1)  # the tensors of the tests are small: more threads would only wait for each other

TIMEOUT = 300.0  # seconds; starting two workers takes a few, far more on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none, with the reason."""
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test computes; a GPU's float32 is not cut down to TF32 meanwhile."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield request.param


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep in the user's cache folder goes to one of the tests, which all workers share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp().parent / "cache"))
        yield


@pytest.fixture(autouse=True)
def no_config_dirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the user's folders, nor those that a command took from --config-dir in the test before."""
    monkeypatch.setenv(VARIABLE, "")


@pytest.fixture(scope="session")
def run_on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """`run_on_ranks(function, world_size, *arguments)` -> the results of `function(*arguments)`, in rank order.

    It runs in `world_size` spawned processes that already form a gloo process group, so `ltexp.distributed` works in
    them. `function` must be at the top level of its test module. A child's exception is raised here, with its
    traceback as a note. The processes are kept for the session; after a failure they are replaced.
    """
    pools: dict[int, RankPool] = {}

    def run(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
        if world_size not in pools:
            pools[world_size] = RankPool(world_size, tmp_path_factory.mktemp("ranks"), TIMEOUT)
        try:
            return pools[world_size].run(function, *arguments)
        except BaseException:
            pools.pop(world_size).close()  # the other ranks may hang in an exchange that the failed one left
            raise

    yield run
    for pool in pools.values():
        pool.close()
