"""Where a task graph runs: threads here, processes here, SLURM jobs, or a dask cluster. The graph is the same."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

import lazy_loader

from ngfftile.errors import ClusterError, NgfftileError, OptionError

dask: Any = lazy_loader.load("dask")  # what only asks for help does not wait for it
Graph = Mapping[Hashable, Any]
Done = Callable[[Hashable], None]
Where = Callable[[Hashable], str]
Tell = Callable[[str], None]
PATIENCE = 60.0  # seconds that a run waits for a first worker, or a new one when all are lost
_STARTED = {"processes", "slurm"}  # by us, for a run
_ADDRESSES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
_HERE = "127.0.0.1"
_AGAIN = "The same command goes on where this one stopped."
# Of clusters of our own. The scheduler counts a lost worker against each task that waited there, guilty or not, and
# where jobs have a time limit workers are lost every day; by default the fourth time is the last.
_OURS = {"distributed.scheduler.allowed-failures": 10}
# A process that ended is started again by its keeper, however long that takes.
_KEPT = {"distributed.deploy.lost-worker-timeout": "1 h"}
_NEVER = logging.CRITICAL + 1  # a level above all
_PLAIN = (str, bytes, int, float, tuple, list, type(None))
# Schedulers whose workers are batch jobs of ours: whether any waits or runs.
_batches: dict[str, Callable[[], bool]] = {}
_agreed: set[str] = set()  # schedulers whose software is ours
_stopped = threading.Event()


@dataclass(frozen=True, slots=True)
class Jobs:
    """SLURM jobs to work in; what is None comes from dask-jobqueue's own configuration.

    Parameters
    ----------
    jobs
        How many. Lost ones are asked for again.
    cores, memory
        Of each job, such as 8 and ``32GB``.
    walltime
        Of each job, such as ``04:00:00``.
    partition
        To run in.

    Raises
    ------
    OptionError
        Fewer than one job or core.
    """

    jobs: int = 1
    cores: int | None = None
    memory: str | None = None
    walltime: str | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        for name, count in (("jobs", self.jobs), ("cores", self.cores)):
            if count is not None and count < 1:
                raise OptionError(f"{name} is {count}", mend="Use 1 or more.")


def silence() -> None:
    """Keep distributed's log from the terminal: what it says at length, our errors say in a line."""
    dask.config.set({"logging": {"distributed": _NEVER, "distributed.client": _NEVER}})


def default_workers() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity
        return os.cpu_count() or 1


def threads(workers: int | None) -> int:
    """How many to start: those asked for, but no more than there are cores.

    More only cost, in switches and in the cache: 4 and 8 on two cores had 0.93 and 0.81 of the speed of 2.
    """
    return min(workers or default_workers(), default_workers())


def check(scheduler: str, workers: int | None) -> None:
    """Refuse, before anything is read, what `run` cannot do.

    Raises
    ------
    OptionError
        An unknown scheduler, or fewer than one worker.
    """
    if scheduler not in {"threads", *_STARTED} and not scheduler.startswith(_ADDRESSES):
        raise OptionError(
            f"scheduler is {scheduler!r}",
            mend="Use threads, processes, slurm, or a dask scheduler's address (tcp://host:port).",
        )
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}", mend="Use 1 or more.")


def stop() -> None:
    """End the runs of all threads of this process, which is about to end: a signal reaches the main thread only."""
    _stopped.set()


@contextmanager
def serving(
    scheduler: str, workers: int | None = None, jobs: Jobs | None = None, tell: Tell = lambda _: None
) -> Iterator[str]:
    """Start what a scheduler needs, once for many runs, and end it on leaving.

    Parameters
    ----------
    scheduler, workers
        As for `run`.
    jobs
        For ``slurm`` only.
    tell
        Called with what a user may want to know, such as the dashboard's address.

    Yields
    ------
    str
        The scheduler to give to `run`: threads, or an address.

    Raises
    ------
    OptionError
        As in `check`, or jobs for another scheduler.
    ClusterError
        Nothing answers at the address, or its workers have other software; SLURM refuses the jobs.
    """
    check(scheduler, workers)
    if jobs is not None and scheduler != "slurm":
        raise OptionError(f"jobs are for scheduler slurm, not {scheduler!r}", mend="Use --scheduler slurm.")
    if scheduler == "processes":
        with _processes(workers or default_workers(), tell) as address:
            yield address
    elif scheduler == "slurm":
        with _slurm(jobs or Jobs(), tell) as address:
            yield address
    else:
        if scheduler != "threads":
            with _connected(scheduler):
                pass  # said once, and not for each slide of a batch
        yield scheduler


def run(
    graph: Graph,
    key: Hashable,
    *,
    scheduler: str = "threads",
    workers: int | None = None,
    done: Done,
    where: Where = str,
) -> Any:
    """Compute one key of a dask graph.

    Parameters
    ----------
    graph
        Keys to tasks, ``(function, argument, ...)``.
    scheduler
        ``threads``, ``processes`` (a `distributed.LocalCluster`), ``slurm`` (jobs as dask-jobqueue's configuration has
        them), or the address of a running dask scheduler. Within `serving`, what that gave.
    workers
        Threads (at most the cores there are) or processes; by default the cores. A running scheduler has its own.
    done
        Called with the key of each task as it ends; once, also where a lost result is made again.
    where
        Names the place that a task works on, for errors.

    Returns
    -------
    object
        The key's value.

    Raises
    ------
    OptionError, ClusterError
        As in `serving`; the scheduler or all workers are lost.
    NgfftileError
        Each worker that took a task ended in it.
    """
    check(scheduler, workers)
    if scheduler == "threads":
        # The pool is left only when all its threads have ended: after an error nothing goes on in the background.
        with ThreadPoolExecutor(threads(workers)) as pool:
            # Given as an argument, it hears of this graph alone; as a context, of all that run in the process.
            ended = (None, None, None, lambda one, *_: done(one), None)  # dask's order: the fourth is after each task
            return dask.threaded.get(dict(graph), key, pool=pool, callbacks=[ended])
    told: set[Hashable] = set()

    def tell(one: Hashable) -> None:
        if one not in told:
            told.add(one)
            done(one)

    own = serving(scheduler, workers) if scheduler in _STARTED else nullcontext(scheduler)
    with own as address, _connected(address) as client:
        value = _compute(_Sent(graph, key), client, tell, where)
    for one in graph:  # the last messages may not have come
        tell(one)
    return value


class _Sent:
    """A graph in the form that a cluster gets.

    A scheduler takes tasks of one name for one task, whoever sends them: each graph has names of its own. It keeps the
    tasks of one name's stem back, but for one or two a worker, if they need nothing: so the stem is the function, and
    the tree is walked depth first.

    A task is pickled by itself. What many have in common, such as the slide's headers, would travel with each, and the
    scheduler would open the slide: so it is left with the scheduler once, as bytes, for each worker to fetch.
    """

    def __init__(self, graph: Graph, key: Hashable) -> None:
        run_id = uuid4().hex
        self.keys = list(graph)
        self.names: dict[Hashable, Any] = {
            one: (f"{graph[one][0].__name__}-{run_id}", i) for i, one in enumerate(self.keys)
        }
        # The scheduler forgets what was left under a task's name together with the task.
        self.last = self.names[key] = f"{graph[key][0].__name__}-{run_id}"
        arguments = [one for task in graph.values() for one in task[1:] if not isinstance(one, _PLAIN)]
        times = Counter(map(id, arguments))
        common = {id(one): one for one in arguments if times[id(one)] > 1}
        self._places = {at: _Common(self.last, i) for i, at in enumerate(common)}
        pickled = import_module("distributed.protocol.pickle").dumps  # of functions without a module, too
        self.common = {str(i): pickled(one) for i, one in enumerate(common.values())}
        self.tasks = {
            self.names[one]: (_run_and_tell, run_id, i, *map(self._sent, graph[one])) for i, one in enumerate(self.keys)
        }
        self.topic = run_id

    def _sent(self, argument: Any) -> Any:
        if isinstance(argument, list):
            return [self._sent(one) for one in argument]
        if isinstance(argument, tuple | str) and argument in self.names:
            return self.names[argument]
        return self._places.get(id(argument), argument)

    def key(self, name: Hashable) -> Hashable:
        """The key in the graph of a name on the cluster."""
        return next((one for one, ours in self.names.items() if ours == name), name)


@dataclass(frozen=True, slots=True)
class _Common:
    """Stands in a task for an argument that was left with the scheduler."""

    last: str
    index: int


@lru_cache(maxsize=32)
def _fetched(what: _Common) -> Any:
    distributed = import_module("distributed")
    worker = distributed.get_worker()
    found = distributed.utils.sync(worker.loop, worker.scheduler.get_metadata, keys=[what.last, str(what.index)])
    return pickle.loads(found)  # noqa: S301 (from our own client, as the task itself is)


def _run_and_tell(topic: str, index: int, function: Callable[..., Any], *arguments: Any) -> Any:
    value = function(*(_fetched(one) if isinstance(one, _Common) else one for one in arguments))
    import_module("distributed").get_worker().log_event(topic, index)
    return value


def _compute(sent: _Sent, client: Any, tell: Done, where: Where) -> Any:
    distributed = import_module("distributed")
    address = client.scheduler.address
    try:
        client.set_metadata([sent.last], sent.common)
        client.subscribe_topic(sent.topic, lambda event: tell(sent.keys[event[1]]))
        future = client.get(sent.tasks, sent.last, sync=False)
        _wait(future, client, address)
        return future.result()
    except distributed.KilledWorker as error:
        raise NgfftileError(
            f"{error.allowed_failures + 1} workers ended while they worked on it (killed, or out of memory)",
            where(sent.key(error.task)),
            f"Look at their logs, or give each more memory. {_AGAIN}",
        ) from error
    except distributed.scheduler.NoWorkerError as error:
        raise _deserted(address, error.timeout) from error
    except (CancelledError, distributed.comm.CommClosedError, distributed.client.ClosedClientError) as error:
        raise ClusterError("the dask scheduler was lost", address, _AGAIN) from error


def _wait(future: Any, client: Any, address: str) -> None:
    """Wait for the result, as long as there is somebody to make it."""
    ended, seen = threading.Event(), time.monotonic()
    future.add_done_callback(lambda _: ended.set())
    while not ended.wait(1.0):
        if _stopped.is_set():
            raise KeyboardInterrupt
        if client.scheduler_info()["workers"] or _batches.get(address, lambda: False)():
            seen = time.monotonic()
        if time.monotonic() - seen > PATIENCE:
            raise _deserted(address, PATIENCE)


def _deserted(address: str, seconds: float) -> ClusterError:
    what = "no job waits or runs" if address in _batches else "the dask scheduler has no worker"
    return ClusterError(f"{what}, for {seconds:.0f} s now", address, f"Look at the workers' logs. {_AGAIN}")


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    distributed = _needed("distributed", "cluster")
    try:
        client = distributed.Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError("no dask scheduler answers", address, "Start one, or correct the address.") from error
    with client:
        scheduler = client.scheduler_info()["id"]
        if scheduler not in _agreed:
            _check_software(client.get_versions(packages=["ngfftile"]))
            _agreed.add(scheduler)
        yield client


def _check_software(found: dict[str, Any]) -> None:
    """Refuse a cluster whose software differs from ours in what would break later, and less clearly."""

    def of(about: dict[str, Any]) -> dict[str, Any]:
        packages = about["packages"]
        python = ".".join(packages["python"].split(".")[:2])
        return {"Python": python} | {name: packages.get(name) for name in ("ngfftile", "dask", "distributed")}

    ours = of(found["client"])
    for name, about in {"the scheduler": found["scheduler"], **found["workers"]}.items():
        wrong = [f"{k} {v or 'missing'} (here {ours[k]})" for k, v in of(about).items() if v != ours[k]]
        if wrong:
            raise ClusterError(f"has {', '.join(wrong)}", name, "Give scheduler and workers the same environment.")


def _needed(package: str, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ClusterError(
            f"this scheduler needs the package {package}", mend=f"pip install 'ngfftile[{extra}]'"
        ) from error


@contextmanager
def _processes(count: int, tell: Tell) -> Iterator[str]:
    distributed = _needed("distributed", "cluster")
    with (
        dask.config.set(_OURS | _KEPT),
        # On this machine alone: no port is opened to the network.
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host=_HERE,
            dashboard_address=f"{_HERE}:0",
            silence_logs=_NEVER,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.register_worker_callbacks(_leave_interrupts_to_the_parent)
        if find_spec("bokeh"):
            tell(f"dashboard {cluster.dashboard_link}")
        yield cluster.scheduler_address


def _leave_interrupts_to_the_parent() -> None:
    """Ctrl-C reaches every process of a terminal; a worker would answer it with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _slurm(jobs: Jobs, tell: Tell) -> Iterator[str]:
    jobqueue = _jobqueue()
    chosen = {"cores": jobs.cores, "memory": jobs.memory, "walltime": jobs.walltime, "queue": jobs.partition}
    settings = dask.config.get("jobqueue.slurm")
    lacking = [name for name in ("cores", "memory") if chosen[name] is None and settings[name] is None]
    if lacking:
        raise ClusterError(
            f"SLURM jobs need {' and '.join(lacking)}",
            mend="Give --cores and --memory, or set them in dask-jobqueue's configuration (jobqueue.slurm).",
        )
    options = {
        # Threads share the shrunken pixels; processes would send them to each other.
        "processes": settings["processes"] or 1,
        "worker_extra_args": ["--dashboard-address", f"{_HERE}:0", *settings["worker-extra-args"]],
    } | {name: value for name, value in chosen.items() if value is not None}
    _submittable(jobqueue.SLURMCluster.job_cls("tcp://scheduler:8786", name="test", **options).job_script())
    # What a browser may ask stays on its machine; how tasks travel is the configuration's to say.
    here = {"dashboard_address": f"{_HERE}:0"} | settings["scheduler-options"]
    with dask.config.set(_OURS), jobqueue.SLURMCluster(scheduler_options=here, **options) as cluster:
        cluster.adapt(minimum=jobs.jobs, maximum=jobs.jobs)
        address = cluster.scheduler_address
        tell(f"{jobs.jobs} SLURM jobs asked for; scheduler {address}")
        if find_spec("bokeh"):
            tell(f"dashboard {cluster.dashboard_link}")
        _batches[address] = lambda: _waiting([job.job_id for job in cluster.workers.values() if job.job_id])
        try:
            yield address
        finally:
            del _batches[address]


def _jobqueue() -> Any:
    """dask-jobqueue, whose import makes Ctrl-C a silent end with exit code 0: that is undone."""
    held = signal.getsignal(signal.SIGINT)
    try:
        found = _needed("dask_jobqueue", "slurm")
    except ValueError as error:  # signals are the main thread's
        raise ClusterError(
            "dask_jobqueue can be imported by the main thread only",
            mend="Import it there, before other threads use it.",
        ) from error
    if held is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, held)
    return found


def _submittable(script: str) -> None:
    """Let SLURM itself say what it would refuse."""
    try:
        found = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)  # noqa: S607 (the user's SLURM)
    except FileNotFoundError as error:
        raise ClusterError("there is no SLURM here: sbatch is not found", mend="Use a machine that has it.") from error
    if found.returncode:
        raise ClusterError(
            f"SLURM refuses the jobs ({' '.join(found.stderr.split())})",
            mend="Correct --cores, --memory, --walltime, --partition.",
        )


def _waiting(ids: list[str]) -> bool:
    """Whether any of these jobs waits or runs; SLURM drops those that ended long ago, and says so."""
    if not ids:
        return False
    asked = ["squeue", "--noheader", "--format=%A", f"--jobs={','.join(ids)}"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    return bool(found.stdout.split()) or (found.returncode != 0 and "Invalid job id" not in found.stderr)
