# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares the qrexec transport with a bare service, through the same stand-in of qrexec."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile

from houses import KEY
from rows import HANG, launch, row, slowness_by

HERE = os.path.dirname(os.path.abspath(__file__))


class House:
    """A daemon over qrexec, two bare services, and a qube."""

    def __init__(self, build, scratch):
        sys.path.insert(0, os.path.join(HERE, "..", "standin"))
        from machine import Machine
        self.build = build
        self.root = os.path.join(scratch, "d")
        self.short = tempfile.mkdtemp(prefix="qvm-remote-bench-", dir="/tmp")  # a socket's path fits
        self.machine = Machine(build, os.path.join(self.short, "m"))
        self.home = self.machine.add("work")
        # Put the records of the client on the same disk as those of the daemon.
        own = os.path.join(scratch, "home", ".qvm-remote")
        os.makedirs(own, 0o700)
        os.rmdir(self.home)
        os.symlink(os.path.join(scratch, "home"), self.home)
        rules = os.path.join(self.root, "etc", "qubes", "remote-policy.d")
        for path in (os.path.join(self.root, "etc", "qubes", "remote.d"), rules):
            os.makedirs(path, 0o700)
        with open(os.open(os.path.join(rules, "50-bench.policy"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
            f.write("work level:full allow\n")
        for path in (self.root, os.path.join(self.root, "etc")):
            os.chmod(path, 0o700)
        self.key = os.path.join(own, "auth.key")
        for path in (self.key, os.path.join(self.root, "etc", "qubes", "remote.d", "work.key")):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as f:
                f.write(KEY + "\n")
        self.services = os.path.join(self.short, "rpc")
        os.mkdir(self.services, 0o700)
        os.symlink("/bin/cat", os.path.join(self.services, "test.Cat"))
        with open(os.open(os.path.join(self.services, "test.Bash"), os.O_WRONLY | os.O_CREAT, 0o755), "w") as f:
            f.write("#!/bin/bash\ntrue\n")
        self.machine.write(self.services + "\n", "services")
        self.call = os.path.join(self.machine.programs, "qrexec-client-vm")
        self.socket = os.path.join(self.services, "qvmremote.Exec")
        self.daemon = self.agent = None

    def env(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("QVM_", "QUBES_", "NOTIFY"))}
        env.update(HOME=self.home, LANG="C.UTF-8", QVM_REMOTE_TRANSPORT="qrexec",
                   QVM_REMOTE_PLUGIN_DIR=os.path.join(self.build, "plugins", "qrexec"),
                   QVM_REMOTE_QREXEC_CLIENT=self.call, QVMREMOTE_STANDIN=self.machine.path,
                   QVMREMOTE_QUBE="work")
        return env

    def __enter__(self):
        notify = os.path.join(self.short, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(notify)
            ready.settimeout(HANG)
            env = self.env()
            del env["QVM_REMOTE_QREXEC_CLIENT"]
            env.update(NOTIFY_SOCKET=notify, QVM_REMOTE_QREXEC_SOCKET=self.socket,
                       QVM_REMOTE_QREXEC_USER=pwd.getpwuid(os.geteuid()).pw_name)
            self.daemon = subprocess.Popen(
                [os.path.join(self.build, "tools/qvm-remote-dom0/qvm-remote-dom0"), "--root", self.root, "--transport", "qrexec",
                 "--plugin-dir", os.path.join(self.build, "plugins", "qrexec")],
                env=env, stdin=subprocess.DEVNULL)
            ready.recv(64)
        return self

    def keep(self):
        """Starts an agent that keeps a call, and waits until it listens. Returns its socket."""
        path = os.path.join(self.home, ".qvm-remote", "agent-qrexec.sock")
        self.agent = subprocess.Popen([os.path.join(self.build, "tools/qvm-remote-agent/qvm-remote-agent"), "--keep"], env=self.env(),
                                      stdin=subprocess.DEVNULL)
        while not os.path.exists(path):
            if self.agent.poll() is not None:
                raise RuntimeError("the agent ended")
        return path

    def __exit__(self, *_):
        for process in (self.agent, self.daemon):
            if process:
                process.terminate()
                process.wait(HANG)
        shutil.rmtree(self.short, ignore_errors=True)


def bench_qrexec(build, scratch, rounds):
    client = os.path.join(build, "tools/qvm-remote/qvm-remote")
    with House(build, os.path.join(scratch, "qrexec")) as house:
        words = ["--count", rounds, "--warmup", 10, "--", "bash", "-c", "true",
                 "--", house.call, "dom0", "test.Cat", "--", house.call, "dom0", "test.Bash",
                 "--", client, "true"]
        alone = launch(*words, env=house.env())
        bash, cat, service, new = (r["median_us"] for r in alone["rows"])
        path = house.keep()
        shared = launch("--count", rounds, "--warmup", 10, "--", "bash", "-c", "true", "--", client, "true",
                        env=house.env())
        done = subprocess.run([os.path.join(build, "tests", "bench", "bench-embedded"), path, house.key,
                               str(5 * rounds)], stdout=subprocess.PIPE, check=True, env=house.env(), timeout=HANG)
        embedded = json.loads(done.stdout)
        calls = len(house.machine.calls("qrexec-client-vm"))
    failed = sum(r["failed"] for r in alone["rows"] + shared["rows"]) + embedded["failed"]
    row("qrexec: a bare cat service through the stand-in", cat / 1000, "ms", None, None,
        f"bash -c true {bash / 1000:.2f} ms")
    row("qrexec: a service that is `bash -c true`", service / 1000, "ms", None, None, "")
    slower, why = slowness_by(bash)
    row("qrexec: qvm-remote true, a new call each, over that service", (new - service) / 1000, "ms",
        f"≤ 2.5 × {slower:.1f}", new - service <= 2500 * slower,
        f"2.5 ms {why}; {new / 1000:.2f} ms / {service / 1000:.2f} ms")
    kept_bash, kept = (r["median_us"] for r in shared["rows"])
    row("qrexec: qvm-remote true, a kept call / bash", kept / kept_bash, "×", None, None,
        f"{kept / 1000:.2f} ms / {kept_bash / 1000:.2f} ms")
    ours, theirs = embedded["ours"]["median_us"], embedded["bash"]["median_us"]
    row("qrexec: embedded client, a kept call / bash", ours / theirs, "×", "≤ 1.8", ours <= 1.8 * theirs,
        f"{ours / 1000:.2f} ms / {theirs / 1000:.2f} ms; {5 * rounds} in a row")
    # One call for each command of the first part except bash, and one of the agent.
    wanted = 3 * (rounds + 10) + 1
    row("qrexec: calls made", calls, "", str(wanted), calls == wanted, "a kept call counts once")
    if failed:
        row("commands that failed", failed, "", "0", False, "")
