# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs: how soon --detach returns, a long list, and what running jobs cost the daemon."""

import subprocess
import time

from houses import House
from rows import HANG, ROUNDS, args, failures_row, fdatasync, launch, ms, ratio_row, row

ENDED = 100 if args.quick else 1000
RUNNING = 20 if args.quick else 200
SECONDS = 3 if args.quick else 10


def switches(pid):
    """How often a process has waited so far."""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("voluntary_ctxt_switches"))


def bench_jobs(state):
    with House(state.programs, "jobs", ["work", "dev"]) as house:
        done = launch("--count", ROUNDS, "--warmup", 10, "--", *house.client("work", "true"),
                      "--", *house.client("work", "--detach", "true"), env=house.env())
        _, allowance = fdatasync()
        plain, detached = (r["median_us"] for r in done["rows"])
        ratio_row("qvm-remote --detach true / true", detached, plain, 1.3, "", allowance)
        failures_row(done)
        launch("--count", ENDED, "--", *house.client("work", "--detach", "true"), env=house.env())
        listed = launch("--count", 20, "--warmup", 3, "--", *house.client("work", "job", "list"), env=house.env())
        row(f"{ENDED} ended jobs listed", ms(listed["rows"][0]), "ms", "≤ 30", ms(listed["rows"][0]) <= 30)
        failures_row(listed)
        for qube in ("work", "dev"):
            launch("--count", RUNNING // 2, "--", *house.client(qube, "--detach", "exec sleep 1000"), env=house.env())
        shown = subprocess.run([house.programs.daemon, "--root", house.root, "jobs"], env=house.env(), check=True,
                               stdout=subprocess.PIPE, timeout=HANG).stdout
        row("jobs that run", shown.count(b" running "), "", f"{RUNNING}", shown.count(b" running ") == RUNNING)
        time.sleep(1)
        before = switches(house.daemon.pid)
        time.sleep(SECONDS)
        waits = switches(house.daemon.pid) - before
        row(f"{RUNNING} running jobs, {SECONDS} s: wake-ups of the daemon", waits, "", "≤ 1", waits <= 1,
            "one keep-alive may fall into this time")
