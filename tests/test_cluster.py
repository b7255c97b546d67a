"""Where graphs run: what dies on the way costs little, what cannot work is said in a line, and plans stay small."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import dask
import distributed
import psutil
import pytest
from typer.testing import CliRunner

import ngfftile as nt
from ngfftile import cli, cluster, writer
from ngfftile.cluster import ClusterError, Jobs
from ngfftile.errors import NgfftileError, OptionError
from ngfftile.store import Store
from ngfftile.writer.plan import Options, plan_for

SMALL = {"shard": 128, "chunk": 64}
COMMAND = Path(sys.executable).with_name("ngfftile")


def objects(folder):
    """The store's bytes, file by file."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def shards(store):
    return list(store.with_name(f"{store.name}.partial").glob("store/0/c/*/*/[0-9]*"))


@pytest.fixture(scope="module")
def expected(svs, tmp_path_factory):
    """The store of 400 shards that threads make."""
    store = tmp_path_factory.mktemp("expected") / "threads.ome.zarr"
    nt.convert(svs, store, **SMALL)
    return objects(store)


@pytest.fixture(scope="module")
def two():
    """Two processes, for many runs."""
    with cluster.serving("processes", 2) as address:
        yield address


@contextmanager
def meanwhile(action, when, end=60):
    """Do something from another thread as soon as it is time."""
    stop = threading.Event()

    def watch():
        until = time.monotonic() + end
        while not stop.wait(0.02) and time.monotonic() < until:
            if when():
                action()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def made(address):
    """How often tasks of each kind have ended."""

    def count(dask_scheduler):
        return {name: prefix.state_counts["memory"] for name, prefix in dask_scheduler.task_prefixes.items()}

    with distributed.Client(address, set_as_default=False) as client:
        return client.run_on_scheduler(count)


def test_a_killed_worker_costs_only_its_tasks(two, svs, expected, tmp_path):
    store = tmp_path / "out.ome.zarr"
    seen, killed, there = [], [], []

    def kill():
        there.extend((p, p.stat().st_mtime_ns) for p in shards(store))
        with distributed.Client(two, set_as_default=False) as client:
            killed.append(next(iter(client.run(os.getpid).values())))
        os.kill(killed[-1], signal.SIGKILL)

    before = made(two)
    with meanwhile(kill, lambda: len(shards(store)) > 60):
        nt.convert(svs, store, **SMALL, scheduler=two, progress=lambda done, total: seen.append((done, total)))
    assert killed
    assert objects(store) == expected
    after = made(two)
    tasks = sum(after.get(name, 0) - before.get(name, 0) for name in ("write_base", "write_mean"))
    shards_there = sum(k[0].isdigit() and "c" in Path(k).parts for k in map(str, expected))
    # Again is made what the lost one held, and what that was made of: at most what was there, and what was at work.
    assert shards_there <= tasks < shards_there + 1.4 * len(there) + 8
    # But nothing is compressed and written again.
    partial = store.with_name(store.name + ".partial") / "store"
    assert all((store / p.relative_to(partial)).stat().st_mtime_ns == written for p, written in there)
    assert seen[-1] == (2600 * 1900, 2600 * 1900)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})  # and none is told twice


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def total(numbers):
    return sum(numbers)


def nap(seconds):
    time.sleep(seconds)
    return 1


def naps(count, seconds=0.05):
    return {("nap", i): (nap, seconds) for i in range(count)} | {"done": (total, [("nap", i) for i in range(count)])}


def test_many_lost_workers_do_not_fail_innocent_tasks(two):
    """More than distributed allows by default, each while tasks waited at it."""
    ended = []

    def kill():
        with distributed.Client(two, set_as_default=False) as client:
            for _ in range(4):
                alive = client.run(os.getpid, on_error="ignore")
                for process in alive.values():
                    os.kill(process, signal.SIGKILL)
                ended.extend(alive)
                time.sleep(0.2)
                client.wait_for_workers(1, timeout=20)

    with meanwhile(kill, lambda: True):
        assert cluster.run(naps(12, 0.4), "done", scheduler=two, done=lambda _: None) == 12
    assert len(ended) >= 4


def test_a_task_that_ends_every_worker_is_named(monkeypatch):
    graph = naps(3)
    # When nothing else is at a worker: distributed suspects all that is, as what is said does.
    graph |= {("die", 7): (die, graph["done"][1]), "done": (total, [("die", 7)])}
    options = {"done": lambda _: None, "where": lambda key: f"x.svs, place {key[1]}"}
    monkeypatch.setitem(cluster._OURS, "distributed.scheduler.allowed-failures", 1)
    with cluster.serving("processes", 1) as address, pytest.raises(NgfftileError) as error:
        cluster.run(graph, "done", scheduler=address, **options)
    assert str(error.value).startswith("x.svs, place 7: 2 workers ended while they worked on it (killed, or out of mem")
    assert "\n" not in str(error.value)


@pytest.fixture
def foreign(tmp_path):
    """A scheduler of somebody else's, as a process; how to start workers of it; all ended after the test."""
    found, processes = tmp_path / "scheduler.json", []

    def start(*arguments):
        command = [sys.executable, "-m", *map(str, arguments), "--host", "127.0.0.1", "--dashboard-address"]
        processes.append(subprocess.Popen([*command, "127.0.0.1:0"], stderr=subprocess.DEVNULL))
        return processes[-1]

    scheduler = start("distributed.cli.dask_scheduler", "--port", 0, "--scheduler-file", found)
    end = time.monotonic() + 30
    while not (found.exists() and found.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    address = json.loads(found.read_text())["address"]
    yield address, scheduler, lambda: start("distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", 1)
    for process in processes:
        process.kill()
        process.wait()


def test_without_workers_or_scheduler_a_run_ends_with_a_line_and_goes_on_later(
    foreign, svs, expected, tmp_path, monkeypatch
):
    address, scheduler, worker = foreign
    store = tmp_path / "out.ome.zarr"
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    with pytest.raises(ClusterError, match="has no worker, for 1 s now") as error:
        nt.convert(svs, store, **SMALL, scheduler=address)
    assert error.value.exit_code == 2
    assert f"(at work on {svs.name})" in str(error.value)
    assert str(error.value).endswith("The same command goes on where this one stopped.")
    monkeypatch.setattr(cluster, "PATIENCE", 30.0)
    worker()
    with (
        meanwhile(scheduler.kill, lambda: len(shards(store)) > 60),
        pytest.raises(ClusterError, match="scheduler was lost"),
    ):
        nt.convert(svs, store, **SMALL, scheduler=address)
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}), pytest.raises(ClusterError, match="no dask sch"):
        nt.convert(svs, store, **SMALL, scheduler=address)
    assert nt.convert(svs, store, **SMALL).found > 60
    assert objects(store) == expected


def test_runs_at_the_same_time_hear_of_their_own_tasks_alone():
    heard = [[], []]
    runs = [
        threading.Thread(target=cluster.run, args=(naps(n), "done"), kwargs={"done": mine.append, "workers": 2})
        for n, mine in zip((9, 14), heard, strict=True)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [len(mine) for mine in heard] == [10, 15]


def test_other_software_at_the_workers_is_refused(two):
    with distributed.Client(two, set_as_default=False) as client:
        found = client.get_versions(packages=["ngfftile"])
    cluster._check_software(found)
    (worker, about), *_ = found["workers"].items()
    for name, version in (("ngfftile", None), ("dask", "2020.1"), ("python", "3.9.1.final.0")):
        other = about | {"packages": about["packages"] | {name: version}}
        with pytest.raises(ClusterError) as error:
            cluster._check_software(found | {"workers": {worker: other}})
        assert str(error.value).startswith(f"{worker}: has ")
        assert "same environment" in str(error.value)


def test_a_run_connects_once(two, monkeypatch):
    made, client = [], distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda *a, **k: made.append(a) or client(*a, **k))
    assert cluster.run(naps(2), "done", scheduler=two, done=lambda _: None) == 2
    assert made == [(two,)]


def test_slurm_from_another_thread_is_said_or_works(svs, tmp_path, monkeypatch):
    code = """
import sys, threading, ngfftile as nt
def run():
    try:
        nt.convert(sys.argv[1], sys.argv[2], scheduler="slurm")
    except nt.errors.ClusterError as error:
        print(error)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    command = [sys.executable, "-c", code, svs, tmp_path / "x.ome.zarr"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "imported by the main thread only" in told.stdout
    assert not told.stderr
    monkeypatch.setattr(cluster, "_needed", lambda *_: "there already")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cluster._jobqueue).result() == "there already"


def test_processes_listen_on_this_machine_alone_and_the_dashboard_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with cluster.serving("processes", 1, tell=told.append) as address:
        assert not told
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        ports = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        assert ports == {"127.0.0.1"}
        assert cluster.run(naps(2), "done", scheduler=address, done=lambda _: None) == 2
    monkeypatch.setattr(cluster, "find_spec", lambda _: True)
    with cluster.serving("processes", 1, tell=told.append):
        (link,) = told
    assert link.startswith("dashboard http://127.0.0.1:")


def test_a_batch_starts_one_cluster(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for seed in (1, 2):
        nt.synthetic.write_svs(tmp_path / "in" / f"{seed}.svs", 300, 200, seed=seed, associated=False)
    started, local = [], distributed.LocalCluster

    def counted(*arguments, **options):
        started.append(options["n_workers"])
        return local(*arguments, **options)

    monkeypatch.setattr(distributed, "LocalCluster", counted)
    arguments = ["convert", str(tmp_path / "in"), "-o", str(tmp_path), "--scheduler", "processes", "--workers", "1"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 of 2 slides done" in result.output
    assert started == [1]


def test_an_interrupt_ends_our_processes(svs, tmp_path):
    store = tmp_path / "out.ome.zarr"
    arguments = ["convert", svs, "-o", store, "--shard", "128", "--chunk", "64", "--scheduler", "processes"]
    process = subprocess.Popen([COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    ours = set()

    def interrupt():
        ours.update(psutil.Process(process.pid).children(recursive=True))
        process.send_signal(signal.SIGINT)

    with meanwhile(interrupt, lambda: len(shards(store)) > 60):
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "goes on from here" in err
    assert "Traceback" not in err
    assert ours
    assert not psutil.wait_procs(ours, timeout=10)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "2"], "jobs are for scheduler slurm, not 'threads'"),
        (["--partition", "long", "--scheduler", "processes"], "jobs are for scheduler slurm, not 'processes'"),
        (["--scheduler", "slurm", "--jobs", "0"], "jobs is 0"),
        (["--scheduler", "slurm"], "SLURM jobs need cores and memory. Give --cores and --memory"),
        (["--scheduler", "slurm", "--cores", "1", "--memory", "1GB"], "there is no SLURM here"),
        (["--scheduler", "pbs"], "scheduler is 'pbs'"),
    ],
)
def test_options_that_cannot_be_meant(arguments, message, svs, store, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (
        ["convert", svs, "-o", tmp_path / "x.ome.zarr"],
        ["verify", store],
        ["tile", store, "-o", tmp_path, "--level", 0],
    ):
        result = CliRunner().invoke(cli.app, [*map(str, command), *arguments])
        assert isinstance(result.exception, NgfftileError)
        assert result.exception.exit_code == 2
        assert message in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_jobs_check_themselves():
    assert Jobs().jobs == 1
    with pytest.raises(OptionError, match="cores is 0"):
        Jobs(cores=0)


def planned(side, **options):
    """A job on a slide of that side that nobody has."""
    source = nt.open_source(nt.synthetic.write_svs(Path("x.svs"), 64, 64, seed=1, associated=False))
    given = dict.fromkeys(("chunk", "codec", "ngff", "method", "planar", "mpp")) | {"shard": None} | options
    chosen = Options.of(None, given | {"associated": True, "deidentify": False, "damaged": "fail"})
    what = plan_for(replace(source.info, size=nt.Size(side, side)), chosen, 2)
    return writer.Job(source, what, Store(Path("store")), Store(Path("draft")))


def test_a_graph_is_small_on_its_way(tmp_path, monkeypatch):
    """What all tasks share travels once; the scheduler keeps a few hundred bytes for each."""
    monkeypatch.chdir(tmp_path)
    graph = writer.graph(planned(100_000), set())
    sent = cluster._Sent(graph, "done")
    assert [len(pickle.loads(one).what.pyramid.levels) for one in sent.common.values()] == [10]
    sizes = [len(pickle.dumps(task)) for task in sent.tasks.values()]
    assert (
        max(size for size, task in zip(sizes, sent.tasks.values(), strict=True) if task[3] is writer.write_base) < 600
    )
    assert sum(sizes) / len(sizes) < 800
    assert not any(b"x.svs" in pickle.dumps(task) for task in sent.tasks.values())


def test_a_graph_of_a_large_slide_is_made_at_once():
    """100,000 x 100,000 in less than 3 s and 100 MB, in a process of its own."""
    code = """
import json, resource, sys, tempfile, time, os
sys.path.insert(0, sys.argv[1])
os.chdir(tempfile.mkdtemp())
from test_cluster import planned
from ngfftile import writer
job = planned(100_000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
begun, before = time.perf_counter(), peak()
tasks = writer.graph(job, set())
print(json.dumps([len(tasks), time.perf_counter() - begun, peak() - before]))
"""
    run = [sys.executable, "-c", code, Path(__file__).parent]
    tasks, seconds, peak = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert tasks == 869
    assert seconds < 3
    assert peak < 100e6


def test_a_plan_of_a_million_by_a_million_takes_no_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun = time.process_time()
    what = planned(1_000_000).what
    assert what.pyramid.count == 80_304
    assert what.objects > 80_304
    assert "1000000 x 1000000" in str(what)
    assert what.to_dict()["levels"][0]["chunks"] == 3907**2
    assert what.peak_bytes < 2e9
    assert time.process_time() - begun < 2
