# SPDX-License-Identifier: GPL-2.0-or-later
"""How a flooding or a busy qube affects other qubes, and how 64 idle qubes affect dom0."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time

from houses import House, memory
from rows import HANG, SCRATCH, args, launch, launching, memory_row, program, row

# For a ratio of percentiles both are measured in turn, so that other load of the machine affects
# both.
TURNS = 3 if args.quick else 6
PER_TURN = 60 if args.quick else 100


class Turns:
    """Times of one qube's `true`, in turn with and without the load of another qube."""

    def __init__(self, house):
        self.house = house
        self.quiet, self.loud = [], []
        self.failed = 0

    def measure(self, into):
        done = launch("--samples", "--count", PER_TURN, "--warmup", 3, "--",
                      *self.house.client("work", "true"), env=self.house.env())["rows"][0]
        into += done["samples_us"]
        self.failed += done["failed"]

    def run(self, loud):
        """`loud` is a context manager."""
        for _ in range(TURNS):
            self.measure(self.quiet)
            with loud():
                time.sleep(0.2)  # until the load is at its full rate
                self.measure(self.loud)
        return self

    def row(self, what, share, bar, strict, note=""):
        quiet, loud = (sorted(times)[int(share * (len(times) - 1))]
                       for times in (self.quiet, self.loud))
        ratio = loud / quiet
        ok = self.failed == 0 and (ratio < bar if strict else ratio <= bar)
        row(what, ratio, "×", f"{'<' if strict else '≤'} {bar}", ok,
            f"{loud / 1000:.2f} ms / {quiet / 1000:.2f} ms of {len(self.loud)}; {self.failed} failed"
            + note)


def bad_agent(kind):
    """Makes a directory with an agent that floods."""
    where = os.path.join(SCRATCH, "bad-agents", kind)
    os.makedirs(where)
    path = os.path.join(where, "qvm-remote-agent")
    with open(path, "w") as f:
        f.write(f"#!/bin/sh\nexec '{program('flood')}' {kind}\n")
    os.chmod(path, 0o755)
    return where


def bench_flood(state):
    kinds = {"bogus": "bogus frames", "requests": "unverified requests", "entries": "queue entries"}
    for kind, words in kinds.items():
        with House(state.programs, "flood-" + kind, ["work", "bad"], {"bad": bad_agent(kind)}) as house:
            before = max(memory(pid, "status", "VmRSS") for pid in house.processes())

            # Stop the agent with SIGSTOP instead of ending it, since the call would not be made
            # again at once.
            @contextlib.contextmanager
            def flooding():
                os.kill(house.agent_pid("bad"), signal.SIGCONT)
                yield
                os.kill(house.agent_pid("bad"), signal.SIGSTOP)

            time.sleep(1)  # the first second of the flood shows whether the call stays open
            os.kill(house.agent_pid("bad"), signal.SIGSTOP)
            calls = len(house.machine.calls("qrexec-client"))
            turns = Turns(house).run(flooding)
            os.kill(house.agent_pid("bad"), signal.SIGCONT)
            calls = len(house.machine.calls("qrexec-client")) - calls
            turns.row(f"beside a flood of {words}: p99", 0.99, 3, True,
                      f"; {calls} calls made anew" if calls else "")
            grown = (house.peak_kib() - before) / 1024
            row(f"growth of the daemon by {words}", grown, "MiB", "< 8", grown < 8)


def bench_neighbour(state):
    with House(state.programs, "neighbour", ["work", "busy"]) as house:
        refused = []

        @contextlib.contextmanager
        def working():
            loops = launching("--parallel", 8, "--count", 10**9, "--",
                              *house.client("busy", "true"), env=house.env())
            yield
            loops.terminate()
            done = json.loads(loops.communicate(timeout=HANG)[0])["rows"][0]
            refused.append((done["failed"], done["n"]))

        turns = Turns(house).run(working)
        failed, count = (sum(column) for column in zip(*refused))
        turns.failed += failed
        turns.row("beside 8 loops of true in another qube: p50", 0.5, 6, False,
                  f"; the loops made {count} runs")


IDLE_SECONDS = 20 if args.quick else 60
ROUND = 60  # seconds between two keep-alives, which come at whole minutes since boot, except the first
SYSCALL = re.compile(r"^(\d+) +(\d+\.\d+) (?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)$")


def boot_seconds():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Trace:
    """Runs strace on the processes of a daemon and all their threads for some seconds."""

    def __init__(self, pids, seconds):
        self.started, self.waits, self.watchdogs, self.answers, self.rounds = 0, 0, 0, 0, 0
        with tempfile.NamedTemporaryFile("r", dir=SCRATCH) as out:
            words = ["strace", "-f", "-qq", "-ttt", "-o", out.name]
            for pid in pids:
                words += ["-p", str(pid)]
            with subprocess.Popen(words, stderr=subprocess.PIPE) as tracer:
                time.sleep(1)  # attaching interrupts system calls that wait
                if tracer.poll() is not None:
                    raise RuntimeError(tracer.stderr.read().decode().strip().splitlines()[-1])
                begin = time.time()
                time.sleep(seconds)
                end = time.time()
                tracer.send_signal(signal.SIGINT)
            lines = out.read().splitlines()
        self.lines = [line for line in lines if self.take(line, begin, end)]

    def take(self, line, begin, end):
        """Takes one line of the trace; returns false if it is outside the time."""
        found = SYSCALL.match(line)
        if not found or not begin <= float(found[2]) <= end or found[4].endswith("<unfinished ...>"):
            return False
        name, rest = found[3], found[4]
        result = int((re.search(r"= (-?\d+)", rest) or [0, "0"])[1])
        if name in ("clone", "clone3", "fork", "vfork", "execve", "execveat"):
            self.started += 1
        elif name in ("epoll_wait", "epoll_pwait", "poll", "ppoll", "select", "futex") and result != 0 \
                and "FUTEX_WAKE" not in rest:
            self.waits += 1
        elif name == "sendto" and "WATCHDOG=1" in rest:
            self.watchdogs += 1
        elif name == "read" and result == 8 and "\\1\\0\\0\\0\\0\\0\\0\\0" in rest:
            self.rounds += 1  # a timer was read
        elif name in ("read", "recvfrom", "recvmsg") and result > 0:
            self.answers += 1
        return True


def bench_idle(state):
    qubes = [f"idle{n}" for n in range(64)]
    house = House(state.programs, "idle", qubes)
    # The first keep-alive comes a minute after the start, the second at a whole minute. Avoid both
    # in one window.
    while not 2 <= boot_seconds() % ROUND <= 25 and not args.quick:
        time.sleep(0.5)
    house.start(WATCHDOG_USEC="30000000")
    try:
        time.sleep(2)
        pids = house.processes()
        trace = Trace(pids, IDLE_SECONDS)
        rss = sum(memory(pid, "status", "VmRSS") for pid in pids)
        pss = sum(memory(pid, "smaps_rollup", "Pss") for pid in pids)
        relays = sum(memory(pid, "smaps_rollup", "Pss") for pid in house.relays())
    finally:
        house.stop()
    what = f"64 idle qubes, {IDLE_SECONDS} s: "
    row(what + "processes started", trace.started, "", "0", trace.started == 0)
    rounds = 1 if trace.rounds else 0
    beyond = trace.waits - trace.watchdogs - rounds - min(trace.answers, 64 * rounds)
    row(what + "wake-ups beyond watchdog, one round, answers", max(beyond, 0), "", "0", beyond <= 0,
        f"{trace.waits} wake-ups: {trace.watchdogs} for the watchdog, {trace.rounds} timers, "
        f"{trace.answers} reads")
    row(what + "reads per answer", trace.answers / 64 if rounds else 0, "", "≤ 1",
        trace.answers <= 64 * rounds)
    memory_row(what + "daemon and its helpers", rss, 24,
               f"RSS of {len(pids)} processes; PSS {pss / 1024:.1f} MiB; Qubes' own relays, "
               f"here stand-ins, {relays / 1024:.0f} MiB more")
