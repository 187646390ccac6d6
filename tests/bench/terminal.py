# SPDX-License-Identifier: GPL-2.0-or-later
"""A terminal in dom0 beside one of a kept ssh: how long a key takes, and how fast coloured output comes."""

import contextlib
import os
import pty
import random
import signal
import statistics
import time

from houses import House
from rows import HANG, args, ratio_row, row

COLOURED = 10_000_000
# A terminal whose program answers, not its line discipline: each key goes to cat and comes back.
ECHO = "stty raw -echo; printf ready; exec cat"


class Terminal:
    """A program on a terminal of its own. `words` may begin with NAME=VALUE."""

    def __init__(self, words, env):
        pid, self.fd = pty.fork()
        if pid == 0:
            try:
                os.execvpe("env", ["env", *words], env)
            finally:
                os._exit(127)
        self.pid = pid
        signal.alarm(HANG)

    def until(self, wanted):
        """Reads up to the end of `wanted`; ends with an error where the program ends before."""
        seen = b""
        while wanted not in seen:
            seen = seen[-len(wanted):] + os.read(self.fd, 65536)

    def key_us(self):
        begin = time.perf_counter_ns()
        os.write(self.fd, b"k")
        os.read(self.fd, 16)
        return (time.perf_counter_ns() - begin) / 1000

    def rest(self):
        """The number of bytes up to the end of the program."""
        size = 0
        with contextlib.suppress(OSError):  # EIO: the last program that had the terminal has closed it
            while got := os.read(self.fd, 65536):
                size += len(got)
        return size

    def stop(self):
        os.close(self.fd)
        os.waitpid(self.pid, 0)
        signal.alarm(0)


def coloured(path):
    """A file with the kind of text that compilers, `ls` and `git log` write, always the same."""
    chance = random.Random(1)
    with open(path, "wb") as out:
        while out.tell() < COLOURED:
            words = (f"\x1b[{chance.randrange(30, 38)};1m{'x' * chance.randrange(2, 12)}\x1b[0m"
                     for _ in range(chance.randrange(1, 10)))
            out.write(" ".join(words).encode() + b"\n")


def bench_terminal(state):
    ssh = state.ssh
    if ssh.why:
        row("terminals were not measured", 0.0, "", "", False, ssh.why)
        return
    keys, rounds = (200, 3) if args.quick else (1000, 7)
    with House(state.programs, "terminal", ["work"]) as house:
        text = os.path.join(house.path, "coloured")
        coloured(text)
        os.chmod(text, 0o644)
        env = dict(house.env(), TERM="xterm")

        def both(command):
            return (Terminal(house.client("work", "--tty", command), env),
                    Terminal([*ssh.words, "-tt", ssh.target, command], env))

        pair, took = both(ECHO), ([], [])
        for terminal in pair:
            terminal.until(b"ready")
        for n in range(-20, keys):  # the first rounds do not count
            for terminal, times in zip(pair, took):
                us = terminal.key_us()
                if n >= 0:
                    times.append(us)
        for terminal in pair:
            terminal.stop()
        ours, theirs = map(statistics.median, took)
        ratio_row("--tty: a key through cat and back, p50 / kept ssh", ours, theirs, 1.5,
                  f"{keys} in turns; p99 {sorted(took[0])[len(took[0]) * 99 // 100] / 1000:.2f} ms")

        rates = ([], [])
        for _ in range(rounds):
            for which, rate in enumerate(rates):
                words = house.client("work", "--tty", f"cat {text}") if which == 0 else \
                    [*ssh.words, "-tt", ssh.target, f"cat {text}"]
                begin = time.perf_counter()
                terminal = Terminal(words, env)
                size = terminal.rest()
                rate.append(size / (time.perf_counter() - begin) / 1e6)
                terminal.stop()
                if size < COLOURED:
                    raise RuntimeError(f"{words[-1]} wrote {size} bytes")
        ours, theirs = map(statistics.median, rates)
        row("--tty: 10 MB of coloured output, of ssh's rate", ours / theirs, "×", "≥ 1.0", ours >= theirs,
            f"{ours:.0f} / {theirs:.0f} MB/s")
