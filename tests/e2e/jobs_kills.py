#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kills the client, a reader, the agent or the daemon with SIGKILL at any moment around jobs. In each round a
job runs once or not at all, its output and its exit code are whole, it has one START and one END, and no
process is left.

Usage: jobs_kills.py BUILD-DIRECTORY --transport mock|qvm-run [ROUNDS=300] [SECONDS=N]
"""

import os
import random
import signal
import subprocess
import sys
import time

import fixture
import job_groups
from fixture import check, equal, eventually, main, survivors



def number(name, otherwise):
    """The value of NAME=N, which it takes off the words."""
    for word in [w for w in sys.argv if w.startswith(name + "=")]:
        otherwise = int(word.split("=")[1])
        sys.argv.remove(word)
    return otherwise


ROUNDS, SECONDS = number("ROUNDS", 300), number("SECONDS", 0)

import jobs  # noqa: E402  (it takes --transport off the words)

fixture.CASES.clear()
LINES = 60


def payload(f, mark, code):
    """Counts its runs, and writes in small pieces for a third of a second or less."""
    return (f"echo run >>{f.path}/{mark}; export MARK={mark}; for i in {{1..{LINES}}}; do echo {mark}-$i; "
            f"[ $((i % 7)) != 0 ] || echo err-$i >&2; [ $((i % {random.randint(2, 9)})) != 0 ] || sleep 0.00{random.randint(1, 9)}; "
            f"done; exit {code}")


def kill_daemon(f, number):
    f.daemon.send_signal(number)
    equal(f.daemon.wait(fixture.HANG), -number if number == signal.SIGKILL else 0)
    f.daemon = None
    if random.random() < 0.5:
        time.sleep(random.random() * 0.3)
    jobs.start(f, *f.how[0], **f.how[1])


def strike(f, victim, p):
    if victim == "client":
        p.kill()
    elif victim == "agent":
        for _, agent in f.house.machine.running("work"):
            os.kill(agent, signal.SIGKILL)
    elif victim == "daemon":
        kill_daemon(f, random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))


def ran(f, mark):
    try:
        with open(os.path.join(f.path, mark), encoding="ascii") as r:
            return len(r.readlines())
    except FileNotFoundError:
        return 0


def one_round(f, number, counts):
    mark = f"job-kill-{os.getpid()}-{number}"
    code = random.randint(0, 99)
    # Half of the rounds kill around the start, half around somebody who reads.
    around_start = random.random() < 0.5
    victim = random.choice(["client", "daemon", "daemon"])
    if not jobs.ON_MOCK and random.random() < 0.05:  # the pause before the next call grows with each
        victim = "agent"
    counts[victim] = counts.get(victim, 0) + 1
    p = f.popen("--detach", payload(f, mark, code), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL)
    if around_start:
        time.sleep(random.random() * 0.03)
        strike(f, victim, p)
    out = p.stdout.read().decode().strip()
    p.wait(fixture.HANG)
    if f.house:
        f.house.wait_for_agent("work")
    begun = [r for r in f.audit() if r["kind"] == "START" and mark in " ".join(r.get("argv", []))]
    check(len(begun) <= 1, begun)
    if out and p.returncode == 0:
        equal([r["id"] for r in begun], [out])
    if not begun:
        time.sleep(0.05)
        equal(ran(f, mark), 0)
        counts["did not start"] = counts.get("did not start", 0) + 1
        return
    ident = begun[0]["id"]
    if not around_start:
        reader = f.popen("job", "attach", ident, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
        time.sleep(random.random() * 0.2)
        strike(f, victim, reader)
        got, said = reader.communicate(timeout=fixture.HANG)
        # Only a client that has begun to read goes on by itself.
        unreachable = b"nobody listens" in said or b"no agent in this qube" in said
        began = not (victim == "daemon" and unreachable and not got)
        if victim != "client" and began:
            check(reader.returncode == code, f"exit code {reader.returncode}, not {code}: {said}")
            equal(got, b"".join(b"%s-%d\n" % (mark.encode(), i) for i in range(1, LINES + 1)))
    eventually(lambda: jobs.ends(f, ident), "END")
    end = jobs.ends(f, ident)
    equal(len(end), 1)
    if ran(f, mark) == 0:
        # The daemon died between START and the launch; or it was told to end, or its session was gone, while
        # START was written.
        check(end[0]["reason"] == "outcome_unknown" and victim == "daemon" or
              end[0]["reason"] in ("draining", "session_over") and end[0]["cause"] == "not-run", end)
        counts["not launched"] = counts.get("not launched", 0) + 1
        return
    equal(ran(f, mark), 1)
    equal((end[0]["exit"], end[0]["cause"]), (code, "exited"))
    waited = f.run("job", "wait", ident)
    equal(waited.returncode, code)
    got = f.run("job", "logs", ident)
    equal(got.stdout, b"".join(b"%s-%d\n" % (mark.encode(), i) for i in range(1, LINES + 1)))
    equal(got.stderr, b"".join(b"err-%d\n" % i for i in range(7, LINES + 1, 7)))
    counts["whole"] = counts.get("whole", 0) + 1
    eventually(lambda: not survivors(f"MARK={mark}"), "no process is left")


@fixture.case
def kills(f):
    if job_groups.GROUP is None:
        print("    skipped: this machine gives us no cgroup")
        return
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    random.seed(seed)
    jobs.start(f)
    counts, done = {}, 0
    end = time.monotonic() + SECONDS
    while done < ROUNDS and (not SECONDS or time.monotonic() < end):
        try:
            one_round(f, done, counts)
        except Exception as e:
            raise AssertionError(f"seed {seed}, round {done}: {e}") from e
        done += 1
    check(f.dom0("audit", "verify").returncode == 0, "the audit log is whole")
    equal(os.listdir(os.path.join(f.root, "run/qvm-remote/jobs")), [])
    print(f"    {done} rounds: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))


if __name__ == "__main__":
    job_groups.enter()
    main()
