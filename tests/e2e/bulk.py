#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Much data: 4 GiB in each direction arrive unchanged while every process stays small, and a reader
that stops delays only its own command. Usage: bulk.py BUILD-DIRECTORY [MIB=N]
MIB is the amount for each direction instead of 4096.
"""

import contextlib
import glob
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import time

from fixture import CLIENT, HANG, Fixture, check
from words import number

SIZE = number("MIB", 4096) << 20
SOURCE = f"yes | head -c {SIZE}"
MOST_KIB = 32 * 1024
# How much output may be between a command and a reader that has stopped: pipes at both ends (1 MiB
# at most each), the window, and some frames.
BETWEEN = 3 << 20


class Peaks:
    """Watches VmHWM of a process and of its descendants."""

    def __init__(self, pid):
        self.peaks = {}
        self.pid = pid
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def look(self):
        pids = [self.pid]
        for pid in pids:
            with contextlib.suppress(OSError):
                with open(f"/proc/{pid}/status") as f:
                    status = dict(line.strip().partition(":")[::2] for line in f)
                if status["Name"].strip().startswith("qvm-remote") and "VmHWM" in status:
                    kib = int(status["VmHWM"].split()[0])
                    self.peaks[pid] = max(self.peaks.get(pid, 0), kib)
                for children in glob.glob(f"/proc/{pid}/task/*/children"):
                    with open(children) as f:
                        pids += f.read().split()

    def run(self):
        while not self.over.wait(0.05):
            self.look()

    def check(self, what, least=1):
        self.over.set()
        self.thread.join()
        self.look()
        largest = max(self.peaks.values(), default=0)
        print(f"  {what}: {largest / 1024:.1f} MiB ({len(self.peaks)} seen)", flush=True)
        check(len(self.peaks) >= least, f"{what}: only {len(self.peaks)} of {least} processes were seen")
        check(0 < largest <= MOST_KIB, f"{what} has grown to {largest} KiB")


def stdout_arrives(env, daemon, expected):
    with subprocess.Popen([CLIENT, SOURCE], env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, bufsize=0) as client:
        small, large = Peaks(client.pid), Peaks(daemon.pid)
        digest, count = hashlib.sha256(), 0
        buffer = bytearray(1 << 20)
        while (n := client.stdout.readinto(buffer)) > 0:
            digest.update(memoryview(buffer)[:n])
            count += n
        check(client.wait(HANG) == 0, f"exit code {client.returncode}")
    check(count == SIZE, f"{count} bytes came")
    check(digest.hexdigest() == expected.result(), "what came is not what was sent")
    small.check("client")
    large.check("daemon, warden and keepers", 3)


def stdin_arrives(env, daemon, expected):
    with subprocess.Popen(["sh", "-c", SOURCE], stdout=subprocess.PIPE) as source, \
            subprocess.Popen([CLIENT, "sha256sum"], env=env, stdin=source.stdout,
                             stdout=subprocess.PIPE) as client:
        source.stdout.close()
        small, large = Peaks(client.pid), Peaks(daemon.pid)
        out, _ = client.communicate(timeout=HANG)
        check(client.returncode == 0, f"exit code {client.returncode}")
    check(out.split()[0].decode() == expected.result(), f"dom0 got something else: {out!r}")
    small.check("client")
    large.check("daemon, warden and keepers", 3)


def slow_reader(env, daemon, scratch):
    def written(pid):
        with open(f"/proc/{pid}/io") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("wchar"))

    mark = os.path.join(scratch, "pid")
    # The pipe is large, so the first bytes come quickly.
    with subprocess.Popen([CLIENT, f"echo $$ >{mark}; exec yes"], env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, bufsize=0) as client:
        read = 0
        while read < 32 << 20:
            read += len(client.stdout.read(1 << 20))
        with open(mark) as f:
            pid = int(f.read())
        for _ in range(2):
            end, last, quiet = time.monotonic() + HANG, -1, 0
            while quiet < 10:
                check(time.monotonic() < end, "the command goes on writing")
                now = written(pid)
                quiet = quiet + 1 if now == last else 0
                last = now
                time.sleep(0.05)
            check(last - read <= BETWEEN, f"{last - read} bytes are on their way")
            print(f"  stalled with {(last - read) / 1024:.0f} KiB on their way", flush=True)
            for n in range(10):
                done = subprocess.run([CLIENT, f"echo {n}"], env=env, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, timeout=HANG)
                check(done.returncode == 0 and done.stdout == b"%d\n" % n, f"echo {n}: {done}")
            check(written(pid) == last, "the stalled command wrote on")
            # It continues where it stopped.
            more = 0
            while more < 32 << 20:
                more += len(client.stdout.read(1 << 20))
            read += more
        client.kill()
        client.stdout.close()
    end = time.monotonic() + HANG
    while os.path.exists(f"/proc/{pid}"):
        check(time.monotonic() < end, "the command outlives its session")
        time.sleep(0.05)
    check(daemon.poll() is None, "the daemon ended")


class Later:
    """A value that a thread computes meanwhile."""

    def __init__(self, work):
        self.value = None
        self.thread = threading.Thread(target=lambda: setattr(self, "value", work()))
        self.thread.start()

    def result(self):
        self.thread.join()
        return self.value


def expected_digest():
    digest, block = hashlib.sha256(), b"y\n" * (1 << 19)
    for _ in range(SIZE // len(block)):
        digest.update(block)
    return digest.hexdigest()


def main():
    with contextlib.ExitStack() as stack:
        scratch = tempfile.mkdtemp(prefix="qvm-remote-bulk-", dir="/tmp")
        stack.callback(shutil.rmtree, scratch, True)
        f = Fixture(scratch).start(peers="work")
        stack.callback(f.stop)
        env, daemon = f.env(), f.daemon
        expected = Later(expected_digest)
        for name, case in (("stdout", lambda: stdout_arrives(env, daemon, expected)),
                           ("stdin", lambda: stdin_arrives(env, daemon, expected)),
                           ("slow reader", lambda: slow_reader(env, daemon, scratch))):
            print(name, flush=True)
            begin = time.monotonic()
            case()
            print(f"  ok, {time.monotonic() - begin:.1f} s", flush=True)


main()
