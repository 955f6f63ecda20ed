"""A Slurm cluster on loopback: a real slurmctld, and a slurmd a node, for tests.

    sudo apt-get install slurmctld slurmd slurm-client slurm-wlm-basic-plugins libmunge2

Every node is this machine by another name and port, with CPUs that need not be there. Nothing
asks who somebody is (`auth/none`): it is for loopback alone.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import psutil

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins libmunge2"
LACKING = [
    name
    for name in ("slurmctld", "slurmd", "slurmstepd", "srun", "scontrol", "squeue", "scancel")
    if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin") is None
]
WHY_NOT = f"Slurm is not installed ({', '.join(LACKING)}): apt-get install {PACKAGES}"

CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
{plugins}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldTimeout=10
SlurmdTimeout=9
KillWait=3
MinJobAge=86400
ReturnToService=2
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Its daemons; `environment` is what Slurm's commands need to find it."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 2) -> None:
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in [name for name in self.environment if name.startswith(("SLURM_", "STAGES_"))]:
            if name != "SLURM_CONF":
                del self.environment[name]
        self.environment["PATH"] += ":/usr/sbin:/usr/local/sbin"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(nodes + 1)
        host = socket.gethostname()
        (folder / "state").mkdir(parents=True)
        for name in self.nodes:
            (folder / name).mkdir()
        found = sorted(Path("/usr/lib").glob("*/slurm-wlm"))
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder,
                host=host,
                port=ports[0],
                user=getpass.getuser(),
                plugins=f"PluginDir={found[0]}" if found else "",
                nodes="\n".join(
                    f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
                    f"CPUs={cpus} RealMemory=4000"
                    for name, port in zip(self.nodes, ports[1:], strict=True)
                ),
            ),
            encoding="utf-8",
        )

    def __enter__(self) -> Cluster:
        self._start("slurmctld", "-D", "-i")
        for name in self.nodes:
            self.start_node(name)
        self.until_idle()
        return self

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--state=PENDING,RUNNING,SUSPENDED", "--user", getpass.getuser())
        for name in [*self.nodes, "slurmctld"]:
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # What a killed slurmd has left waits for it; jobs that a failed test has left end here.
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                # Not psutil's reading of it, which ends where slurmstepd has written its title.
                variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                of_a_job = any(one.startswith(b"SLURM_JOB_ID=") for one in variables)
                if ours in variables and (process.name() == "slurmstepd" or of_a_job):
                    process.kill()

    def start_node(self, name: str) -> None:
        stepd = shutil.which("slurmstepd", path=self.environment["PATH"])
        self._start("slurmd", "-D", "-N", name, "-d", str(stepd), as_=name)

    def kill_node(self, name: str) -> None:
        """SIGKILL for its slurmd; what it has started lives on."""
        self._daemons[name].kill()
        self._daemons[name].wait()

    def until_idle(self, seconds: float = 40) -> None:
        end = time.monotonic() + seconds
        while (states := self.states()) != dict.fromkeys(self.nodes, "idle"):
            assert time.monotonic() < end, f"the nodes are {states}"
            time.sleep(0.1)

    def states(self) -> dict[str, str]:
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return {name: state for name, state in map(str.split, lines)}

    def jobs(self) -> list[str]:
        """All that wait, run or end, by name and state."""
        return self.run("squeue", "--noheader", "--format=%j %T").splitlines()

    def run(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        ).stdout

    def _start(self, *command: str, as_: str | None = None) -> None:
        name = as_ or command[0]
        with (self.folder / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


def tasks(folder: Path) -> list[psutil.Process]:
    """The processes of jobs, the daemons' own (slurmstepd) left out, that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            if Path(process.cwd()).is_relative_to(folder) and "SLURM_JOB_ID" in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, below those that the system gives to others by itself."""
    found: list[int] = []
    for port in range(20000 + os.getpid() % 5000, 32000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")
