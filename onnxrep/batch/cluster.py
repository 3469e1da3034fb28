"""A Dask cluster as an executor: what is sent is this package's functions and JSON.

Dask sends pickles, so a cluster is a matter of trust in both directions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor, Future, InvalidStateError
from typing import Any

from onnxrep.errors import UsageError
from onnxrep.escape import one_line

_PATIENCE = 15
"""Seconds in which the scheduler must answer."""

LOST = "KilledWorker"
"""The error of Dask that says: the task was tried on several workers, and all of them died."""


class Cluster(Executor):
    """The workers of a Dask scheduler.

    A task whose worker dies is given to another one, at most as often as the scheduler's ``allowed-failures`` says.
    """

    def __init__(self, address: str) -> None:
        """Connect to the scheduler at ``address``, such as ``tcp://10.0.0.1:8786``.

        Raises:
            UsageError: ``distributed`` is not installed, or no scheduler answers there.

        """
        try:
            from distributed import Client
            from distributed.comm import get_address_host_port
        except ImportError:
            raise UsageError("a Dask cluster needs the extra: pip install 'onnxrep[dask]'") from None
        try:
            get_address_host_port(address, strict=True)  # a client with a wrong address takes long to give up
            self._client = Client(address, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(one_line(f"{address}: no Dask scheduler answers ({error})")) from None

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Have a function called on a worker.

        Dask's own executor is no use here: its futures are never done if the scheduler goes away.
        """
        here: Future[Any] = Future()
        # Equal tasks are not the same: what a file holds may have changed since.
        there = self._client.submit(function, *arguments, **named, pure=False)

        def done(there: Any) -> None:
            with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                try:
                    if there.cancelled():
                        raise ConnectionError("the connection to the scheduler was lost")
                    here.set_result(there.result(timeout=_PATIENCE))
                except Exception as error:  # noqa: BLE001  whatever the task raised, or Dask
                    here.set_exception(error)

        def cancelled(here: Future[Any]) -> None:
            if here.cancelled():
                there.cancel()

        there.add_done_callback(done)
        here.add_done_callback(cancelled)
        return here

    def everywhere(self, function: Callable[[str], Any], argument: str) -> None:
        """Call a function on each worker, out of turn; what cannot be reached is left out."""
        self._client.run(function, argument, on_error="ignore")

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, which goes on; it drops the tasks that nobody waits for any more."""
        self._client.close()
