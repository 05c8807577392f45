"""Functions on a Dask cluster."""

from __future__ import annotations

import pytest

from dask_cluster import DaskCluster
from panel_schedule.config import Config
from panel_schedule.decorators import Front
from panel_schedule.runtime import Runtime
from panel_schedule.testing import ExecutorContract

pytest.importorskip("distributed", reason="Dask is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One that most tests share: what ends its scheduler or its worker has one of its own."""
    made = DaskCluster(tmp_path_factory.mktemp("dask"))
    made.worker(threads=2)
    yield made
    made.close()


def front(dask, **options) -> Front:
    config = Config({})
    config.store, config.dask = "memory://", dask
    for option, value in options.items():
        setattr(config, option, value)
    return Front(Runtime(config))


@pytest.fixture
def ps(cluster):
    made = front(cluster.address)
    yield made
    made._runtime.grace = 0.0
    made._runtime.close()


class TestContract(ExecutorContract):
    where, places, isolated = "dask", 2, True

    @pytest.fixture
    def executor(self, ps):
        return ps._runtime.service.executor("job", self.where)
