# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon and qubes, connected by a transport: one class for each transport."""

import os
import pwd
import shutil
import socket
import subprocess
import sys

from fixture import BUILD, CLIENT, DAEMON, HANG, KEY, check, eventually

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "standin"))
from machine import Machine  # noqa: E402


class House:
    """A fixture and a machine with qubes, over qvm-run."""

    transport = "qvm-run"
    victims = ("agent", "relay", "daemon")  # the names of links()

    def __init__(self, f, *qubes, programs="qrexec-client", events=True, key=KEY, dom0_key=None,
                 options=(), conf=None, **more):
        self.f, self.key, self.dom0_key = f, key, dom0_key or key
        self.machine = Machine(BUILD, os.path.join(f.path, "m"))
        for qube in qubes:
            self.add(qube, **more)
        if events:
            self.machine.start_qubesd()
        f.on_stop = self.close
        self.how = self.machine.options(programs, events)
        self.how.update(conf or {})
        self.options = options
        self.start()

    def start(self):
        self.f.spawn("qvm-run", *self.options, **self.how)

    def single_run(self, *options):
        """Runs the daemon with `--once`. Returns the finished process."""
        return subprocess.run([DAEMON, "--root", self.f.root, "--transport", "qvm-run", "--plugin-dir",
                               os.path.join(BUILD, "plugins", "qvm-run"), "--once", *options],
                              env=self.f.env(QVM_REMOTE_MOCK_SOCKET=None, **self.how),
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG)

    def close(self):
        self.machine.stop_qubesd()

    def restart(self):
        self.f.stop()
        self.start()

    def add(self, qube, authorized=True, **more):
        home = self.machine.add(qube, **more)
        base = os.path.join(home, ".qvm-remote")
        os.mkdir(base, 0o700)
        with open(os.open(os.path.join(base, "auth.key"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as k:
            k.write(self.key + "\n")
        if authorized:
            got = self.f.dom0("authorize", qube, stdin=(self.dom0_key + "\n").encode())
            check(got.returncode == 0, got.stderr)

    def env(self, qube, **more):
        how = dict(HOME=self.machine.home(qube), QVM_REMOTE_TRANSPORT=None,
                   QVM_REMOTE_PLUGIN_DIR=None, QVM_REMOTE_MOCK_SOCKET=None)
        how.update(more)
        return self.f.plain_env(**how)

    def run(self, qube, *words, stdin=None, **more):
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run([CLIENT, *words], env=self.env(qube, **more), capture_output=True,
                              timeout=HANG, **given)

    def popen(self, qube, *words, **kw):
        return subprocess.Popen([CLIENT, *words], env=self.env(qube), **kw)

    def agent_socket(self, qube):
        return os.path.join(self.machine.home(qube), ".qvm-remote", "agent.sock")

    def wait_for_agent(self, *qubes):
        for qube in qubes:
            eventually(lambda: self.has_agent(qube), f"an agent in {qube}")
        return self

    def has_agent(self, qube):
        with socket.socket(socket.AF_UNIX) as s:
            try:
                s.connect(self.agent_socket(qube))
                return True
            except OSError:
                return False

    def links(self, qube):
        """The processes between a client and dom0 that a test may kill: names and process IDs."""
        relay, agent = self.machine.running(qube)[0]
        return {"agent": agent, "relay": relay, "daemon": self.f.daemon.pid}


class MockHouse(House):
    """Over the mock transport: each qube has a socket, with no process between."""

    transport = "mock"
    victims = ("daemon",)

    def start(self):
        self.f.spawn("mock", *self.options, QVM_REMOTE_MOCK_DIR=self.f.root, **self.how)

    def env(self, qube, **more):
        return super().env(qube, **{
            "QVM_REMOTE_TRANSPORT": "mock", "QVM_REMOTE_PLUGIN_DIR": os.path.join(BUILD, "plugins", "mock"),
            "QVM_REMOTE_MOCK_SOCKET": os.path.join(self.f.root, qube + ".sock"), **more})

    def agent_socket(self, qube):
        return os.path.join(self.f.root, qube + ".sock")

    def links(self, qube):
        return {"daemon": self.f.daemon.pid}


class QrexecHouse(House):
    """Over qrexec: each client makes a call."""

    transport = "qrexec"
    victims = ("relay", "daemon")

    def __init__(self, f, *qubes, events=False, **more):
        super().__init__(f, *qubes, events=events, **more)

    def start(self):
        self.machine.write(os.path.join(self.f.root, "run", "qubes-rpc") + "\n", "services")
        self.f.spawn("qrexec", *self.options, QVM_REMOTE_QREXEC_USER=pwd.getpwuid(os.geteuid()).pw_name,
                     **self.how)

    def env(self, qube, **more):
        return super().env(qube, **{
            "QVM_REMOTE_TRANSPORT": "qrexec", "QVM_REMOTE_PLUGIN_DIR": os.path.join(BUILD, "plugins", "qrexec"),
            "QVM_REMOTE_QREXEC_CLIENT": os.path.join(self.machine.programs, "qrexec-client-vm"),
            "QVMREMOTE_STANDIN": self.machine.path, "QVMREMOTE_QUBE": qube, **more})

    def wait_for_agent(self, *qubes):
        return self

    def has_agent(self, qube):
        return os.path.exists(os.path.join(self.f.root, "run/qubes-rpc/qvmremote.Exec"))

    def links(self, qube):
        relay = self.machine.calls("qrexec-client-vm " + qube)[-1].split(" ")[2]
        return {"relay": int(relay), "daemon": self.f.daemon.pid}


class KeptHouse(QrexecHouse):
    """Over qrexec, with an agent in each qube that keeps one call for all clients."""

    victims = ("agent", "relay", "daemon")

    def __init__(self, *words, **more):
        self.agents = {}
        super().__init__(*words, **more)

    def wait_for_agent(self, *qubes):
        for qube in qubes:
            if qube not in self.agents or self.agents[qube].poll() is not None:
                self.agents[qube] = subprocess.Popen(
                    [os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent"), "--keep"], env=self.env(qube),
                    stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return House.wait_for_agent(self, *qubes)

    def agent_socket(self, qube):
        return os.path.join(self.machine.home(qube), ".qvm-remote", "agent-qrexec.sock")

    def has_agent(self, qube):
        return House.has_agent(self, qube)

    def links(self, qube):
        return {"agent": self.agents[qube].pid, **super().links(qube)}

    def close(self):
        for agent in self.agents.values():
            agent.terminate()
            agent.wait(HANG)
        super().close()


class BothHouse(QrexecHouse):
    """qvm-run and qrexec at once; env() is for a client over qrexec."""

    both = "both"

    def start(self):
        plugins = os.path.join(self.f.path, "plugins")
        os.makedirs(plugins, 0o700, exist_ok=True)
        for name in ("qvm-run", "qrexec"):
            shutil.copy(os.path.join(BUILD, "plugins", name, name + ".so"), plugins)
        self.machine.write(os.path.join(self.f.root, "run", "qubes-rpc") + "\n", "services")
        self.f.spawn(self.both, *self.options, plugins=plugins,
                     QVM_REMOTE_QREXEC_USER=pwd.getpwuid(os.geteuid()).pw_name, **self.how)

    def by_qvm_run(self, qube):
        return House.env(self, qube)

    wait_for_agent = House.wait_for_agent
    has_agent = House.has_agent


HOUSES = {"mock": MockHouse, "qvm-run": House, "qrexec": QrexecHouse, "qrexec-kept": KeptHouse}


def house_of(f, *qubes, **more):
    return HOUSES[f.transport](f, *qubes, events=False, **more).wait_for_agent(*qubes)
