"""What every store promises, as tests: the author of a backend subclasses :class:`StoreContract`."""

from __future__ import annotations

from .runs import RunContract
from .schedules import ScheduleContract
from .threads import ThreadContract
from .values import ValueContract


class StoreContract(ValueContract, ScheduleContract, RunContract, ThreadContract):
    """
    The promises of :class:`~panel_schedule.stores.base.Store`.

    A subclass has a fixture `store`: a new, empty store whose histories keep `history_limit` records.

    Attributes
    ----------
    history_limit : int
    scale : int
        How often the tests with many threads do what they do.

    Examples
    --------
    >>> class TestMyStore(StoreContract):          # doctest: +SKIP
    ...     @pytest.fixture
    ...     def store(self):
    ...         return MyStore(history_limit=self.history_limit)
    """
