# SPDX-License-Identifier: GPL-2.0-or-later
"""The installed release build and its surroundings: dom0's root with a daemon, below the build directory
and thus on a real disk, and qubes."""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import sys
import time

from rows import BUILD, HANG, SCRATCH, SHORT

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "standin"))
from machine import Machine  # noqa: E402

KEY = "0123456789abcdef" * 4


def find(directory, name):
    """The path of a program, not of its completion, which has the same name."""
    for where, _, _ in os.walk(directory):
        path = os.path.join(where, name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"{name} was not installed")


class Installed:
    """Both ends as `make install-vm install-dom0` installs them, below the scratch directory."""

    def __init__(self):
        tree = os.path.join(SCRATCH, "installed")
        subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild", "--tags",
                        "qube,dom0,transport", "--destdir", tree], check=True,
                       stdout=subprocess.DEVNULL)
        self.client = find(tree, "qvm-remote")
        self.daemon = find(tree, "qvm-remote-dom0")
        self.agent = find(tree, "qvm-remote-agent")
        self.plugins = os.path.dirname(find(tree, "qvm-run.so"))


class Dom0:
    """A daemon's root. A subclass provides the transport."""

    transport = None

    def __init__(self, programs, name, qubes):
        self.programs = programs
        self.plugins = programs.plugins
        self.path = os.path.join(SCRATCH, name)
        self.root = os.path.join(self.path, "dom0")
        os.makedirs(self.root, 0o700)
        self.short = os.path.join(SHORT, name)
        os.symlink(self.path, self.short)
        self.qubes = []
        self.daemon = self.ready = None
        for qube in qubes:
            self.add(qube)

    def env(self):
        env = {k: v for k, v in os.environ.items()
               if not k.startswith(("QVM_", "QUBES_", "NOTIFY", "WATCHDOG", "LD_"))}
        env.update(LANG="C.UTF-8")
        return env

    def add(self, qube):
        base = os.path.join(self.home(qube), ".qvm-remote")
        os.makedirs(base, 0o700)
        with open(os.open(self.key(qube), os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write(KEY + "\n")
        subprocess.run([self.programs.daemon, "--root", self.root, "authorize", qube],
                       input=KEY.encode() + b"\n", env=self.env(), check=True, timeout=HANG,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.qubes.append(qube)

    def key(self, qube):
        return os.path.join(self.home(qube), ".qvm-remote", "auth.key")

    def client(self, qube, *words):
        """The arguments for the launcher that run this client."""
        return [*(f"{k}={v}" for k, v in self.client_env(qube).items()), self.programs.client,
                *words]

    def daemon_words(self):
        return [*(f"{k}={v}" for k, v in self.daemon_env().items()), self.programs.daemon, "--root",
                self.root, "--transport", self.transport, "--plugin-dir", self.plugins]

    def start(self, **more):
        notify = os.path.join(self.short, "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(notify)
        self.ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ready.bind(notify)
        self.ready.settimeout(1)
        self.daemon = subprocess.Popen(["env", *self.daemon_words()],
                                       env=dict(self.env(), NOTIFY_SOCKET=notify, **more),
                                       stdin=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(TimeoutError):
                self.ready.recv(64)
                return self
            if self.daemon.poll() is not None:
                raise RuntimeError("the daemon ended at once; it said why above")

    def stop(self):
        if self.daemon:
            self.daemon.terminate()
            self.daemon.wait(HANG)
            self.daemon = None
            self.ready.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def processes(self):
        """The daemon and the processes that it has forked."""
        pids = [self.daemon.pid]
        for pid in pids:
            for children in glob.glob(f"/proc/{pid}/task/*/children"):
                with contextlib.suppress(OSError), open(children) as f:
                    pids += map(int, f.read().split())
        return [pid for pid in pids if runs(pid, self.programs.daemon)]

    def peak_kib(self):
        return max(memory(pid, "status", "VmHWM") for pid in self.processes())


class MockHouse(Dom0):
    """A dom0 with one qube, over the mock transport."""

    transport = "mock"

    def __init__(self, programs, name):
        super().__init__(programs, name, ["work"])
        self.plugins = os.path.join(BUILD, "plugins", "mock")  # it is in no package
        self.sockets = self.short + "-sockets"  # the plug-in takes no symbolic link
        os.mkdir(self.sockets, 0o700)

    def home(self, qube):
        return os.path.join(self.path, "home")

    def client_env(self, qube):
        return {"HOME": self.home(qube), "QVM_REMOTE_PLUGIN_DIR": self.plugins,
                "QVM_REMOTE_TRANSPORT": "mock",
                "QVM_REMOTE_MOCK_SOCKET": os.path.join(self.sockets, qube + ".sock")}

    def daemon_env(self):
        return {"QVM_REMOTE_MOCK_DIR": self.sockets, "QVM_REMOTE_MOCK_PEERS": " ".join(self.qubes)}


class House(Dom0):
    """A dom0 with qubes over the default transport, with the stand-in of qrexec-client. `agents` maps a
    qube's name to a directory with another agent than ours, or to None for a qube without an agent."""

    transport = "qvm-run"

    def __init__(self, programs, name, qubes, agents=None, faults=""):
        self.agents, self.faults = agents or {}, faults
        super().__init__(programs, name, [])
        self.machine = Machine(BUILD, os.path.join(self.short, "m"))
        for qube in qubes:
            self.add(qube)

    def add(self, qube):
        ours = os.path.dirname(self.programs.agent)
        self.machine.add(qube, agent=self.agents.get(qube, ours), faults=self.faults)
        super().add(qube)

    def home(self, qube):
        return self.machine.home(qube)

    def client_env(self, qube):
        return {"HOME": self.home(qube)}

    def daemon_env(self):
        return self.machine.options()

    def start(self, **more):
        self.machine.start_qubesd()
        super().start(**more)
        for qube in self.qubes:
            if qube not in self.agents:
                self.wait_for_agent(qube)
        return self

    def stop(self):
        super().stop()
        self.machine.stop_qubesd()

    def agent_socket(self, qube):
        return os.path.join(self.home(qube), ".qvm-remote", "agent.sock")

    def wait_for_agent(self, qube):
        end = time.monotonic() + HANG
        while True:
            with socket.socket(socket.AF_UNIX) as s, contextlib.suppress(OSError):
                s.connect(self.agent_socket(qube))
                return
            if time.monotonic() > end:
                raise TimeoutError(f"no agent in {qube}")
            time.sleep(0.01)

    def agent_pid(self, qube):
        """The process ID of the agent; waits for it, since it may be between two calls."""
        end = time.monotonic() + HANG
        while time.monotonic() < end:
            for _, agent in self.machine.running(qube):
                if agent:
                    return agent
            time.sleep(0.01)
        raise TimeoutError(f"no call to {qube}")

    def relays(self):
        return [relay for qube in self.qubes for relay, _ in self.machine.running(qube)]


def runs(pid, path):
    with contextlib.suppress(OSError):
        return os.path.samefile(f"/proc/{pid}/exe", path)
    return False


def memory(pid, file, *names):
    """The sum of the named lines of /proc/PID/`file`, in KiB."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}") as f:
        return sum(int(line.split()[1]) for line in f if line.split(":")[0] in names)
    return 0


def clear():
    shutil.rmtree(SCRATCH, ignore_errors=True)
    shutil.rmtree(SHORT, ignore_errors=True)
