"""Where a task graph runs: threads here, processes here, or a dask cluster. The graph is the same."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from dask.callbacks import Callback
from dask.threaded import get

from ngfftile.errors import OptionError

Graph = Mapping[Hashable, Any]
Done = Callable[[Hashable], None]
_ADDRESSES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")


def default_workers() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        return os.cpu_count() or 1


def check(scheduler: str, workers: int | None) -> None:
    """Refuse, before anything is read, what `run` cannot do.

    Raises
    ------
    OptionError
        An unknown scheduler, or fewer than one worker.
    """
    if scheduler not in {"threads", "processes"} and not scheduler.startswith(_ADDRESSES):
        raise OptionError(
            f"scheduler is {scheduler!r}",
            mend="Use threads, processes, or a dask scheduler's address (tcp://host:port).",
        )
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}", mend="Use 1 or more.")


def run(graph: Graph, key: Hashable, *, scheduler: str = "threads", workers: int | None = None, done: Done) -> Any:
    """Compute one key of a dask graph.

    Parameters
    ----------
    graph
        Keys to tasks, ``(function, argument, ...)``.
    scheduler
        ``threads``, ``processes`` (a `distributed.LocalCluster`), or the address of a running dask scheduler.
    workers
        Threads or processes to use; by default the cores there are. A running scheduler has its own.
    done
        Called with the key of each task as it ends.

    Returns
    -------
    object
        The key's value.
    """
    check(scheduler, workers)
    if scheduler == "threads":
        # The pool is left only when all its threads have ended: after an error nothing goes on in the background.
        with _Report(done), ThreadPoolExecutor(workers or default_workers()) as pool:
            return get(dict(graph), key, pool=pool)
    # A scheduler takes tasks of one name for one task, whoever sends them: each run has names of its own.
    run_id = uuid4().hex
    with _client(scheduler, workers or default_workers()) as client:
        client.subscribe_topic(run_id, lambda event: done(_as_key(event[1])))
        return client.get(
            {_named(k, run_id): _reporting(k, task, graph, run_id) for k, task in graph.items()}, _named(key, run_id)
        )


class _Report(Callback):  # type: ignore[misc]  # dask.callbacks has no types
    def __init__(self, done: Done) -> None:
        super().__init__(posttask=lambda key, *_: done(key))


def _named(key: Hashable, run_id: str) -> Hashable:
    return (f"{key[0]}-{run_id}", *key[1:]) if isinstance(key, tuple) else f"{key}-{run_id}"


def _reporting(key: Hashable, task: tuple[Any, ...], graph: Graph, run_id: str) -> Any:
    def renamed(argument: Any) -> Any:
        if isinstance(argument, list):
            return [renamed(one) for one in argument]
        return _named(argument, run_id) if isinstance(argument, tuple | str) and argument in graph else argument

    # The key as text, for dask would take the key itself for the task's value.
    return (_run_and_tell, run_id, json.dumps(key), *map(renamed, task))


def _as_key(text: str) -> Hashable:
    key = json.loads(text)
    return tuple(key) if isinstance(key, list) else str(key)


def _run_and_tell(run_id: str, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
    import distributed

    value = function(*arguments)
    distributed.get_worker().log_event(run_id, key)
    return value


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Any]:
    try:
        import distributed
    except ImportError as error:
        raise OptionError(
            f"scheduler {scheduler!r} needs the package distributed", mend="pip install 'ngfftile[cluster]'"
        ) from error
    if scheduler != "processes":
        with distributed.Client(scheduler, set_as_default=False) as client:
            yield client
        return
    with (
        # On this machine alone: no port is opened to the network.
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.run(_leave_interrupts_to_the_parent)
        yield client


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches every process of a terminal; a worker would answer it with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
