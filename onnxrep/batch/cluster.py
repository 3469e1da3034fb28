"""A Dask cluster as the place where a batch runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor

from onnxrep.errors import UsageError
from onnxrep.printing import one_line


@contextlib.contextmanager
def dask(address: str) -> Iterator[Executor]:
    """Yield an executor that runs tasks on a Dask cluster; what is sent is this package's functions and JSON.

    Dask sends pickles, so a cluster is a matter of trust in both directions. A task whose worker dies is given to
    another one by the scheduler.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.

    Raises:
        UsageError: Dask is not installed, or no scheduler answers.

    """
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("a Dask cluster needs the extra: pip install 'onnxrep[dask]'") from None
    try:
        client = Client(address, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(one_line(f"{address}: no Dask scheduler answers ({error})")) from None
    with client:
        yield client.get_executor(pure=False)
