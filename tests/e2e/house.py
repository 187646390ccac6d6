# SPDX-License-Identifier: GPL-2.0-or-later
"""A daemon over the qvm-run transport, and qubes around it."""

import os
import socket
import subprocess
import sys

from fixture import BUILD, CLIENT, HANG, KEY, check, eventually

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "standin"))
from machine import Machine  # noqa: E402


class House:
    """A fixture with a machine of qubes around it."""

    def __init__(self, f, *qubes, programs="qrexec-client", events=True, key=KEY, options=(), conf=None,
                 **more):
        self.f, self.key = f, key
        self.machine = Machine(BUILD, os.path.join(f.path, "m"))
        for qube in qubes:
            self.add(qube, **more)
        if events:
            self.machine.start_qubesd()
        f.on_stop = self.machine.stop_qubesd
        self.how = self.machine.options(programs, events)
        self.how.update(conf or {})
        self.options = options
        self.start()

    def start(self):
        self.f.spawn("qvm-run", *self.options, **self.how)

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
            got = self.f.dom0("authorize", qube, stdin=(self.key + "\n").encode())
            check(got.returncode == 0, got.stderr)

    def env(self, qube, **more):
        return self.f.env(HOME=self.machine.home(qube), QVM_REMOTE_TRANSPORT=None,
                          QVM_REMOTE_PLUGIN_DIR=None, QVM_REMOTE_MOCK_SOCKET=None, **more)

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
