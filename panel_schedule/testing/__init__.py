"""For tests: a schedule on virtual time; and of stores and executors, what each of them promises."""

from .clock import VirtualClock
from .contracts.executors import BodyContract, ExecutorContract
from .contracts.records import RecordStoreContract, SharedRecordStoreContract
from .contracts.store import StoreContract
from .schedule import Schedule, SimulatedRun, simulate

__all__ = [
    "BodyContract",
    "ExecutorContract",
    "RecordStoreContract",
    "Schedule",
    "SharedRecordStoreContract",
    "SimulatedRun",
    "StoreContract",
    "VirtualClock",
    "simulate",
]
__dir__ = __all__.copy
