# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs: how soon --detach returns, a long list, and what running jobs cost the daemon."""

import os
import subprocess
import sys

from houses import House
from load import Trace
from rows import HANG, ROUNDS, args, failures_row, fdatasync, launch, ms, ratio_row, row

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import job_groups  # noqa: E402

ENDED = 100 if args.quick else 1000
RUNNING = 20 if args.quick else 200
SECONDS = 3 if args.quick else 10


def bench_jobs(state):
    job_groups.make()
    if job_groups.GROUP is None:
        return row("jobs", 0, "", "", False, "this machine gives us no cgroup")
    house = House(state.programs, "jobs", ["work", "dev"])
    try:
        measure(house.start(QVM_REMOTE_JOBS_CGROUP=job_groups.another()))
    finally:
        house.stop()
        job_groups.end()


def measure(house):
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
    trace = Trace([house.daemon.pid], SECONDS)
    # Asio waits twice for a timer: for its descriptor, and for the loop's own.
    beyond = max(0, trace.waits - 2 * min(trace.rounds, 1) - min(trace.answers, len(house.qubes)))
    row(f"{RUNNING} running jobs, {SECONDS} s: wake-ups beyond one keep-alive", beyond, "", "≤ 0", beyond <= 0,
        f"{trace.waits} wake-ups, {trace.rounds} of a timer, {trace.answers} answers")
