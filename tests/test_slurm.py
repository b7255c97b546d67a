"""Conversion in the jobs of a real SLURM, started here on one node; skipped where it is not installed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import ngfftile as nt

COMMAND = Path(sys.executable).with_name("ngfftile")
SMALL = ("--shard", 128, "--chunk", 64)
DAEMONS = ("munged", "slurmctld", "slurmd")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, DAEMONS)) or os.geteuid() != 0,
    reason="needs root, and the packages slurmctld, slurmd, slurm-client, munge",
)
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=01:00:00 State=UP
"""


def until(true, seconds=30):
    """Wait for something, and give it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of one node on 127.0.0.1, and the environment that leads to it."""
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    settings = folder / "slurm.conf"
    settings.write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(2)))
    environment = os.environ | {
        "SLURM_CONF": str(settings),
        "DASK_JOBQUEUE__SLURM__INTERFACE": "lo",
        "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "1s",
    }
    munge = {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munged.pid",
        "seed-file": "munge.seed",
        "log-file": "munge.log",
    }
    starts = [
        ["munged", "--force", *(f"--{name}={folder / file}" for name, file in munge.items())],
        ["slurmctld", "-f", settings, "-i", "-c"],
        ["slurmd", "-f", settings],
    ]
    try:
        for start in starts:
            subprocess.run(start, env=environment, check=True, capture_output=True)
        asked = ["sinfo", "--noheader", "--format=%T"]
        until(lambda: b"idle" in subprocess.run(asked, env=environment, capture_output=True, check=False).stdout)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, check=False)  # of this SLURM, whatever a test left
        for name in reversed(DAEMONS):
            if (folder / f"{name}.pid").exists():
                process = int((folder / f"{name}.pid").read_text())
                os.kill(process, signal.SIGTERM)
                until(lambda process=process: gone(process))


def gone(process):
    """Whether a process has ended; a child that nobody waited for counts."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except FileNotFoundError:
        return True


def jobs(environment, *options):
    asked = ["squeue", "--noheader", "--format=%A", *options]
    return subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.split()


def started(slurm, folder, *arguments):
    return subprocess.Popen(
        [COMMAND, "convert", *map(str, arguments), "--scheduler", "slurm", "--cores", "1", "--memory", "1GB"],
        env=slurm,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def objects(folder):
    """The store's bytes, file by file."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder): p.read_bytes() for p in files}


def shards(store):
    return list(store.with_name(f"{store.name}.partial").glob("store/0/c/*/*/*"))


@pytest.fixture(scope="module")
def expected(svs, tmp_path_factory):
    """The store of 400 shards that threads make."""
    store = tmp_path_factory.mktemp("expected") / "threads.ome.zarr"
    nt.convert(svs, store, shard=128, chunk=64)
    return objects(store)


def test_a_slide_converts_in_jobs_and_lost_jobs_are_replaced(slurm, svs, expected, tmp_path):
    store = tmp_path / "out.ome.zarr"
    process = started(slurm, tmp_path, svs, "-o", store, *SMALL, "--jobs", 2)
    until(lambda: len(shards(store)) > 20)
    first = jobs(slurm)
    assert len(first) == 2
    subprocess.run(["scancel", "--signal=KILL", "--full", *first], env=slurm, check=True)
    until(lambda: len(set(jobs(slurm)) - set(first)) == 2)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "MP/s" in out
    assert err.startswith("2 SLURM jobs asked for; scheduler tcp://127.0.0.1:")
    assert "Traceback" not in err
    assert objects(store) == expected
    until(lambda: not jobs(slurm))


def test_an_interrupt_ends_our_jobs_and_only_them(slurm, svs, expected, tmp_path):
    store = tmp_path / "out.ome.zarr"
    asked = ["sbatch", "--parsable", "--wrap", "sleep 60", "--output=/dev/null"]
    other = subprocess.run(asked, env=slurm, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    process = started(slurm, tmp_path, svs, "-o", store, *SMALL)
    until(lambda: len(shards(store)) > 20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "goes on from here" in err
    assert "Traceback" not in err
    until(lambda: jobs(slurm) == [other])
    subprocess.run(["scancel", other], env=slurm, check=True)
    assert nt.convert(svs, store, shard=128, chunk=64).found > 20
    assert objects(store) == expected


def test_what_slurm_refuses_is_said_at_once(slurm, svs, tmp_path):
    process = started(slurm, tmp_path, svs, "-o", tmp_path / "out.ome.zarr", "--partition", "none-such")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "invalid partition specified: none-such" in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
