#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a small session with a fault of the transport at every byte, in both directions: the stream is
cut there, stalls, has a bit flipped or a byte twice. In each case the client must not report a wrong result,
nothing runs twice, and a failure has its exit code and its message. A stream that is only split there must
give the right result; this also shows that dom0 serves the next request after each fault.
Usage: every_byte.py BUILD-DIRECTORY [EVERY=N] [SECONDS=N] [CASE...]
It tests every Nth byte, and repeats all with other bits until SECONDS are over.
"""

import collections
import contextlib
import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from words import number

EVERY, SECONDS = number("EVERY", 1), number("SECONDS", 0)

from fixture import HANG, case, check, equal, main  # noqa: E402

OUT, ERR, CODE = b"<input>\n", b"words\n", 7
# How long to wait before the test interrupts a client: after some faults both ends wait, for half a
# minute or longer. A build that tests only a sample of the bytes is slow, so it gets more time.
PATIENCE = 1 if EVERY == 1 else 5
AT_ONCE = 24
HARMFUL = ("cut", "corrupt", "duplicate", "stall")


class Sessions:
    """One daemon, and clients whose streams have faults."""

    def __init__(self, f):
        self.f = f
        self.ran = os.path.join(f.path, "ran")
        self.turn = 0

    def run(self, fault, patience=HANG):
        """Runs a command. Returns exit code, stdout, stderr and the mark of the command."""
        self.turn += 1
        mark = f"{self.turn}-{fault.replace(':', '-')}"
        command = f"echo $QVM_REMOTE_ID {mark} >>{self.ran}; read x; echo \"<$x>\"; echo words >&2; exit {CODE}"
        p = self.f.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=dict(QVM_REMOTE_MOCK_FAULT=fault, QVM_REMOTE_MOCK_SEED=str(self.turn)))
        try:
            out, err = p.communicate(b"input\n", timeout=patience)
        except subprocess.TimeoutExpired:
            # The first signal is forwarded, the second ends the client; one may be enough.
            p.send_signal(signal.SIGINT)
            try:
                out, err = p.communicate(timeout=0.3)
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGINT)
                out, err = p.communicate(timeout=HANG)
        return p.returncode, out, err, mark

    def length(self, way):
        """How many bytes a session sends in this direction: a cut after them has no effect."""
        low, high = 0, 4096
        while low < high:
            middle = (low + high) // 2
            if self.run(f"{way}:cut:{middle}")[0] == CODE:
                high = middle
            else:
                low = middle + 1
        return low

    def ids(self):
        """The IDs of the commands that ran, by mark."""
        found = collections.defaultdict(list)
        with contextlib.suppress(FileNotFoundError), open(self.ran) as lines:
            for line in lines:
                command, mark = line.split()
                found[mark].append(command)
        return found


def judge(fault, result, ran):
    code, out, err, mark = result
    check(len(ran[mark]) <= 1, f"{fault}: one command, {len(ran[mark])} executions")
    if code == CODE or fault.split(":")[1] == "split":
        equal((fault, code, out, err), (fault, CODE, OUT, ERR))
        return "whole"
    if code == -signal.SIGINT:  # the client did not handle signals yet
        return "given up"
    check(code in (126, 130, 255), f"{fault}: exit code {code}: {err}")
    check(OUT.startswith(out), f"{fault}: {out}, which the command did not write")
    said = re.sub(rb"^words\n", b"", err)
    # A user who interrupts a command needs no message about it.
    check(said.startswith(b"qvm-remote: ") or (code, said) == (130, b""),
          f"{fault}: exit code {code}, and no message of ours: {err}")
    if ran[mark] and code != 130:
        check(code == 255 and b"may have run" in err and ran[mark][0].encode() in err,
              f"{fault}: it ran, but the exit code is {code}: {err}")
    return {126: "refused", 130: "given up", 255: "lost"}[code]


@case
def a_fault_at_any_byte_gives_no_false_result(f):
    f.start()
    sessions = Sessions(f)
    begin = time.monotonic()
    lengths = {way: sessions.length(way) for way in ("in", "out")}
    ends, faults = collections.Counter(), 0
    while not faults or time.monotonic() - begin < SECONDS:
        places = [f"{way}:{kind}:{at}" for kind in HARMFUL for way, length in lengths.items()
                  for at in range(sessions.turn % EVERY, length + 4, EVERY)]
        random.Random(sessions.turn).shuffle(places)

        def both(fault):
            harmless = re.sub(":[a-z]+:", ":split:", fault)
            return ((fault, sessions.run(fault, PATIENCE)), (harmless, sessions.run(harmless)))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            pairs = list(pool.map(both, places))
        ran = sessions.ids()
        for pair in pairs:
            for fault, result in pair:
                ends[fault.split(":")[1] + " " + judge(fault, result, ran)] += 1
        faults += len(places)
    everything = [r["id"] for r in f.audit() if r["kind"] == "START"]
    equal(len(everything), len(set(everything)))
    print(f"    {faults} faults at {sum(lengths.values())} bytes: "
          + ", ".join(f"{n} {what}" for what, n in sorted(ends.items())), flush=True)


@case
def a_stream_that_stalls_before_dom0_has_spoken_is_given_up_by_itself(f):
    """Runs one client for each place, all at once, since each takes half a minute. After the first bytes of
    dom0 a client waits as long as its stream is open; the case above interrupts these clients."""
    f.start()
    sessions = Sessions(f)
    places = [f"{way}:stall:{at}" for way in ("in", "out") for at in range(1, 10, 2)]
    with ThreadPoolExecutor(len(places)) as pool:
        for fault, result in zip(places, pool.map(sessions.run, places)):
            equal((fault, judge(fault, result, sessions.ids())), (fault, "lost"))


main()
