# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine of stand-ins: qubes, each with a HOME, and the programs that dom0 would call."""

import contextlib
import os
import signal
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))


class Machine:
    """`path` is a short directory of the test, since the path of a socket must fit."""

    def __init__(self, build, path):
        self.programs = os.path.join(build, "tests", "standin")
        self.build = build
        self.path = path
        os.makedirs(os.path.join(path, "qubes"), 0o700, exist_ok=True)
        self.qubesd = None

    def file(self, *names):
        return os.path.join(self.path, *names)

    def write(self, text, *names):
        """Writes a file and renames it, so that readers see it complete."""
        path = self.file(*names)
        with open(path + ".new", "w") as f:
            f.write(text)
        os.rename(path + ".new", path)

    def read(self, *names):
        try:
            with open(self.file(*names)) as f:
                return f.read()
        except FileNotFoundError:
            return ""

    def add(self, qube, state="Running", agent=True, faults="", profile="", shell=""):
        """Returns the HOME of the qube's user. With `agent` our agent is in the PATH of the qube; `agent`
        may also be a directory with another agent."""
        home = self.file("qubes", qube, "home")
        os.makedirs(home, 0o700)
        for name, text in (("path", os.path.join(self.build, "tools/qvm-remote-agent") if agent is True else agent or ""), ("faults", faults),
                           ("profile", profile), ("shell", shell)):
            if text:
                self.write(text + "\n", "qubes", qube, name)
        self.set_state(qube, state)
        return home

    def set_state(self, qube, state):
        self.write(state + "\n", "qubes", qube, "state")
        for call, _ in self.running(qube):
            # A killed call leaves its mark, and another process may have its process ID now.
            with contextlib.suppress(OSError), open(f"/proc/{call}/cmdline", "rb") as f:
                if f.read().startswith(self.programs.encode()):
                    os.kill(call, signal.SIGUSR2)

    def set_faults(self, qube, text):
        self.write(text + "\n", "qubes", qube, "faults")

    def home(self, qube):
        return self.file("qubes", qube, "home")

    def calls(self, program=""):
        return [line for line in self.read("calls").splitlines() if line.startswith(program)]

    def running(self, qube):
        """The process IDs of each call: the relay, and the first process in the qube."""
        folder = self.file("qubes", qube, "calls")
        out = []
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            out.append((int(name), int(self.read("qubes", qube, "calls", name) or 0)))
        return out

    def violations(self):
        return self.read("violations")

    def start_qubesd(self):
        self.qubesd = subprocess.Popen(["/usr/bin/python3", os.path.join(HERE, "qubesd.py"),
                                        self.file("qubesd.sock")],
                                       env=dict(os.environ, QVMREMOTE_STANDIN=self.path))
        while not os.path.exists(self.file("qubesd.sock")):
            time.sleep(0.01)

    def stop_qubesd(self):
        if self.qubesd:
            self.qubesd.send_signal(signal.SIGTERM)
            self.qubesd.wait()
            self.qubesd = None

    def options(self, programs="qrexec-client", events=True):
        """The settings with which the daemon's transport calls these programs."""
        at = "QVM_REMOTE_QVM_RUN_"
        client = os.path.join(self.programs, "qrexec-client")
        return {"QVMREMOTE_STANDIN": self.path,
                at + "QVM_RUN": os.path.join(self.programs, "qvm-run"),
                at + "QREXEC_CLIENT": client if programs == "qrexec-client" else "none",
                at + "QVM_CHECK": os.path.join(self.programs, "qvm-check"),
                at + "QUBESD": self.file("qubesd.sock") if events else "none"}
