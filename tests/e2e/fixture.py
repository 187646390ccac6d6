# SPDX-License-Identifier: GPL-2.0-or-later
"""What the end-to-end tests in Python share: a scratch HOME and root with the shipped daemon, checks,
and the loop over the cases, as an ordinary user (root gives up its rights first).

Run a test as TEST.py BUILD-DIRECTORY [CASE...]; -CASE runs all cases except that one.
"""

import contextlib
import fcntl
import glob
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time

BUILD = os.path.abspath(sys.argv[1])
CLIENT = os.path.join(BUILD, "tools/qvm-remote/qvm-remote")
DAEMON = os.path.join(BUILD, "tools/qvm-remote-dom0/qvm-remote-dom0")
PLUGINS = os.path.join(BUILD, "plugins", "mock")
HANG = 180  # seconds; only a hang takes this long, even on a loaded machine with sanitizers
KEY = "0123456789abcdef" * 4


class Fixture:
    """A scratch HOME and root; start() adds a daemon."""

    transport = "mock"  # for start() and env(); another transport has a house of qubes

    def __init__(self, path):
        self.path = path
        self.home = os.path.join(path, "home")
        self.root = os.path.join(path, "dom0")
        os.mkdir(self.home, 0o700)
        os.mkdir(self.root, 0o700)
        self.daemon = None
        self.under = []  # a program that starts the daemon
        self.house = None
        self.on_stop = None

    def renew(self, name):
        """Makes another dom0, below this one, for a case that needs several."""
        self.path = os.path.join(self.path, name[:1])
        self.root = os.path.join(self.path, "dom0")
        os.makedirs(self.root, 0o700)

    def env(self, **more):
        if self.house:
            return {k: v for k, v in self.house.env("work", **more).items() if v is not None}
        return self.plain_env(**more)

    def plain_env(self, **more):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("QVM_", "QUBES_", "NOTIFY"))}
        env.update(HOME=self.home, LANG="C.UTF-8", QVM_REMOTE_PLUGIN_DIR=PLUGINS,
                   QVM_REMOTE_TRANSPORT="mock",
                   QVM_REMOTE_MOCK_SOCKET=os.path.join(self.root, "work.sock"))
        env.update(more)
        return {k: v for k, v in env.items() if v is not None}

    def run(self, *words, stdin=None, env=None, program=CLIENT, **kw):
        given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        return subprocess.run([program, *words], env=self.env(**(env or {})), capture_output=True,
                              timeout=HANG, **given, **kw)

    def dom0(self, *words, stdin=None, env=None):
        return self.run("--root", self.root, *words, stdin=stdin, env=env, program=DAEMON)

    def popen(self, *words, env=None, **kw):
        return subprocess.Popen([CLIENT, *words], env=self.env(**(env or {})), **kw)

    def write_key(self, text=KEY + "\n", mode=0o600):
        path = os.path.join(self.home, ".qvm-remote", "auth.key")
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, mode)
        return path

    def start(self, *options, peers="work dev", key=KEY, **env):
        if self.transport != "mock":
            return self.start_house(options, key)
        self.write_key()
        if key:
            got = self.dom0("authorize", "work", stdin=(key + "\n").encode())
            check(got.returncode == 0, got.stderr)
        self.spawn("mock", *options, QVM_REMOTE_MOCK_DIR=self.root, QVM_REMOTE_MOCK_PEERS=peers, **env)
        return self

    def start_house(self, options, key):
        from house import HOUSES
        if self.house:
            self.house.options = options
            self.house.start()
        else:
            self.house = HOUSES[self.transport](self, "work", events=False, options=options,
                                                dom0_key=key)
            self.home = self.house.machine.home("work")
        self.house.wait_for_agent("work")
        return self

    def spawn(self, transport, *options, plugins=None, **env):
        """Starts the daemon and waits until it is ready."""
        notify = os.path.join(self.path, "notify")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(notify)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(notify)
        ready.settimeout(HANG)
        self.daemon = subprocess.Popen(
            [*self.under, DAEMON, "--root", self.root, "--transport", transport, "--plugin-dir",
             plugins or os.path.join(BUILD, "plugins", transport), *options],
            env=self.plain_env(NOTIFY_SOCKET=notify, QVM_REMOTE_MOCK_SOCKET=None, **env),
            stdin=subprocess.DEVNULL)
        check(ready.recv(64) == b"READY=1", "the daemon is not ready")
        ready.close()

    def stop(self):
        if self.daemon:
            self.daemon.terminate()
            code = self.daemon.wait(HANG)
            self.daemon = None
            return code
        return None

    def audit(self):
        # Wait a moment, since the daemon writes some records later.
        time.sleep(0.05)
        with open(os.path.join(self.root, "var/log/qvm-remote/audit.jsonl")) as f:
            # A line that is being written may be visible in part.
            return [json.loads(line) for line in f if line.endswith("\n")]

    def log(self):
        with open(os.path.join(self.root, "var/log/qubes/qvm-remote.log")) as f:
            return f.read()


def check(ok, what="check failed"):
    if not ok:
        raise AssertionError(what)


def equal(got, wanted):
    check(got == wanted, f"got {got!r}, not {wanted!r}")


def eventually(condition, what):
    end = time.monotonic() + HANG
    while not condition():
        check(time.monotonic() < end, f"never happened: {what}")
        time.sleep(0.01)


def on_terminal(f, *words, columns=80, keep_stdout=False, foreground=True, stdout=None, env=None):
    """Runs the client on its own terminal. Returns what it writes there, and what it writes to stdout."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_terminal():
        os.setsid()
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)
        if not foreground:  # what a shell does for `command &`: another group has the terminal
            other = os.fork()
            if other == 0:
                os.setpgid(0, 0)
                os.execv("/bin/sleep", ["sleep", "60"])
            with contextlib.suppress(OSError):
                os.setpgid(other, other)
            os.tcsetpgrp(2, other)

    p = f.popen(*words, stdin=subprocess.DEVNULL, stdout=stdout or (subprocess.PIPE if keep_stdout else slave), stderr=slave,
                env=env, preexec_fn=take_terminal)
    os.close(slave)
    seen, end = b"", time.monotonic() + HANG
    while p.poll() is None or select.select([master], [], [], 0)[0]:
        check(time.monotonic() < end, f"{words} does not end; shown: {seen[-200:]}")
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
    out = p.stdout.read() if keep_stdout else b""
    p.wait(timeout=HANG)
    os.close(master)
    return seen, out


def at_a_terminal():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def operator(f, *words):
    """Runs a command of dom0 on its own terminal, by which dom0 knows an operator if commands have no cgroups."""
    control, terminal = pty.openpty()
    try:
        return subprocess.run([DAEMON, "--root", f.root, *words], env=f.env(), stdin=terminal,
                              capture_output=True, timeout=HANG, preexec_fn=at_a_terminal)
    finally:
        os.close(control)
        os.close(terminal)


def survivors(mark):
    """Processes whose environment holds the mark."""
    found = []
    for path in glob.glob("/proc/[0-9]*/environ"):
        with contextlib.suppress(OSError), open(path, "rb") as f:
            if mark.encode() in f.read():
                found.append(path)
    return found


def daemon_processes(f):
    """The processes of the daemon and its helpers."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as words_of:
                words = words_of.read().split(b"\0")
        except OSError:
            continue
        if words[0] == DAEMON.encode() and f.root.encode() in words:
            found.append(int(name))
    return found


CASES = []


def case(function):
    CASES.append(function)
    return function


def become_nobody(directory):
    if os.geteuid() != 0:
        return
    os.chown(directory, 65534, 65534)
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def main():
    os.umask(0o022)
    # A shell ignores these for a background job, and each child would inherit that.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    base = tempfile.mkdtemp(prefix="qvm-remote-cli-", dir="/tmp")
    become_nobody(base)
    check(os.access(CLIENT, os.X_OK), f"an ordinary user cannot run {CLIENT}")
    wanted = [w for w in sys.argv[2:] if not w.startswith("-")]
    left_out = [w[1:] for w in sys.argv[2:] if w.startswith("-")]
    failed = ran = 0
    try:
        for number, function in enumerate(CASES):
            if (wanted and function.__name__ not in wanted) or function.__name__ in left_out:
                continue
            ran += 1
            place = os.path.join(base, str(number))
            os.mkdir(place, 0o700)
            f = Fixture(place)
            begin = time.monotonic()
            try:
                function(f)
                verdict = "ok"
            except Exception as e:  # run the other cases anyway
                failed += 1
                verdict = f"FAILED: {type(e).__name__}: {e}"[:2000]
            finally:
                with contextlib.suppress(Exception):
                    f.stop()
                if f.on_stop:
                    f.on_stop()
            print(f"{function.__name__:55} {time.monotonic() - begin:6.2f} s  {verdict}", flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(f"{ran} cases, {failed} failed")
    sys.exit(1 if failed or not ran else 0)
