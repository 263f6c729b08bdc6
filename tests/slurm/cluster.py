"""A real Slurm cluster of three hosts on this machine: a login node with the controller, and two compute nodes.

Each host has a network namespace on a shaped link (tools/linklab), its own host name, and an /etc/hosts that knows the
others, so Slurm and the programs it starts see three machines:

    login [10.77.0.1] munged, slurmctld, sbatch ---+
    n1    [10.77.0.2] slurmd, ranks ---------------+-- switch, every link at the same rate
    n2    [10.77.0.3] slurmd, ranks ---------------+

Nothing of the machine itself is used: no systemd, no /etc/slurm, none of its ports or sockets. All processes live
in the namespaces, and end when these are removed. A cluster whose process was killed is removed by the next one.
"""

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from linklab_lib.links import Lab, LabError, parse_links
from linklab_lib.network import Network, remove_leftovers, require_privileges
from linklab_lib.owner import NAMESPACES, Owner, namespaces_of

from tests.slurm.configuration import CLUSTER_NAME, GPUS_PER_NODE, gres_conf, slurm_conf

ROOT = Path(__file__).resolve().parents[2]
NODES = ("n1", "n2")
HOSTS = ("login", *NODES)
LINK_RATE = "800mbit"
FOLDERS = Path("/tmp")
"""Where clusters keep their files; a socket's path must be short."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "nsenter", "unshare")
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
START_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 60.0

ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
"""Run by a shell in new UTS and mount namespaces: be the host $1 with the hosts file $2, then the command. (Not
`ip netns exec`, which mounts a new /sys and hides the control groups from slurmd.)"""


def why_not() -> str | None:
    """Why no cluster can be brought up here; None when one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install --no-install-recommends slurm-wlm munge"
    try:
        require_privileges("without it there are no tests under Slurm")
        with _network(("1mbit",) * len(HOSTS)):
            return None
    except LabError as error:
        return str(error)


@contextlib.contextmanager
def _network(rates: Sequence[str]) -> Iterator[Network]:
    """The hosts' namespaces, removed at the end with all that runs in them."""
    links = parse_links(",".join(rates), hosts=len(rates), burst_bytes=1 << 17, queue_ms=2000)
    owner = Owner.current()
    assert not namespaces_of(owner), "one cluster per process"
    network = Network(owner, Lab(links=links), "skip the tests under Slurm")
    try:
        network.build(lambda: None)
        yield network
    finally:
        network.remove()


class SlurmCluster:
    """The running cluster. Make one with `running_cluster`."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network, self.folder = network, folder
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on one of HOSTS."""
        namespace = NAMESPACES / self._network.namespace(HOSTS.index(host))
        enter = ["nsenter", f"--net={namespace}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", ENTER, "sh", host, str(self.folder / "hosts"), *argv]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's environment without a Slurm of its own, on this cluster."""
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))
        }
        return {**outside, "PATH": SEARCH_PATH, "SLURM_CONF": str(self.folder / "slurm.conf"), **(extra or {})}

    def run(
        self,
        *argv: str,
        host: str = "login",
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a host to its end; standard output and error are in the result.

        Raises:
            subprocess.TimeoutExpired: it took longer.
        """
        return subprocess.run(
            self.command(host, argv),
            env=self.environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            start_new_session=True,
        )

    def ask(self, *argv: str) -> str:
        """What a program prints on the login node; it must succeed."""
        result = self.run(*argv)
        assert result.returncode == 0, f"{' '.join(argv)}: {result.stdout}{result.stderr}\n{self.logs()}"
        return result.stdout

    @contextlib.contextmanager
    def hidden(self, node: str, folder: Path, empty: Path) -> Iterator[None]:
        """Within, the jobs on one node see an empty folder in the place of another."""
        inside = ["nsenter", f"--mount=/proc/{self._daemons[f'slurmd-{node}'].pid}/ns/mnt"]
        subprocess.run([*inside, "mount", "--bind", str(empty), str(folder)], check=True, timeout=CALL_TIMEOUT_S)
        try:
            yield
        finally:
            subprocess.run([*inside, "umount", str(folder)], check=True, timeout=CALL_TIMEOUT_S)

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle.

        Raises:
            AssertionError: a daemon ended, or the nodes are not idle in time; with the daemons' last lines.
        """
        self._write_files()
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        socket = self.folder / "munge.socket"
        places = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._start("login", "munged", "--foreground", "--force", f"--socket={socket}", *places)
        self._wait(socket.exists, "munged")
        self._start("login", "slurmctld", "-D", "-i")
        for node in NODES:
            self._start(node, "slurmd", "-D", "-N", node)
        self._wait(lambda: self._node_states() == ["idle"] * len(NODES), "nodes")

    def _node_states(self) -> list[str]:
        return self.run("sinfo", "--noheader", "--partition=main", "--Node", "--format=%t").stdout.split()

    def stop(self) -> None:
        """End the daemons, hard: their state is thrown away. What is left of jobs ends with the namespaces."""
        for process in self._daemons.values():
            process.kill()
            process.wait()

    def logs(self) -> str:
        """The last lines of every daemon."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self.folder.glob("*.log")))

    def _write_files(self) -> None:
        lab = self._network.lab
        addresses = {host: lab.address(number) for number, host in enumerate(HOSTS)}
        hosts = [f"{address} {host}" for host, address in addresses.items()]
        (self.folder / "hosts").write_text("\n".join(("127.0.0.1 localhost", *hosts, "")))
        (self.folder / "slurm.conf").write_text(slurm_conf(self.folder, addresses))
        (self.folder / "gres.conf").write_text(gres_conf(self.folder, NODES))
        (self.folder / "state").mkdir()
        for number in range(GPUS_PER_NODE):
            os.mknod(self.folder / f"gpu{number}", stat.S_IFCHR | 0o600, os.makedev(1, 3))  # a null device plays a GPU

    def _start(self, host: str, *argv: str) -> None:
        name = f"{argv[0]}-{host}"
        with (self.folder / f"{name}.log").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                self.command(host, argv),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not condition():
            ended = [name for name, process in self._daemons.items() if process.poll() is not None]
            assert not ended, f"{ended} ended\n{self.logs()}"
            assert time.monotonic() < deadline_s, f"{what}: not up after {START_TIMEOUT_S:g} s\n{self.logs()}"
            time.sleep(0.1)


@contextlib.contextmanager
def running_cluster() -> Iterator[SlurmCluster]:
    """A cluster with idle nodes; on every exit, also by SIGTERM, its processes, namespaces and files are gone."""
    remove_dead_clusters()
    owner = Owner.current()
    before = signal.signal(signal.SIGTERM, _leave)
    folder = Path(tempfile.mkdtemp(prefix=f"{CLUSTER_NAME}-{owner.pid}-{owner.start_ticks}-", dir=FOLDERS))
    try:
        with _network((LINK_RATE,) * len(HOSTS)) as network:
            cluster = SlurmCluster(network, folder)
            try:
                cluster.start()
                yield cluster
            finally:
                cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def remove_dead_clusters() -> None:
    """Remove what clusters whose process was killed have left behind: processes, namespaces, files."""
    remove_leftovers()
    for folder in FOLDERS.glob(f"{CLUSTER_NAME}-*"):
        numbers = re.fullmatch(rf"{CLUSTER_NAME}-(\d+)-(\d+)-.*", folder.name)
        if numbers and not Owner(pid=int(numbers[1]), start_ticks=int(numbers[2])).is_alive():
            shutil.rmtree(folder, ignore_errors=True)


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # ends pytest, not just the test that runs
