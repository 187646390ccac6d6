# SPDX-License-Identifier: GPL-2.0-or-later
"""The rows about admission: what a durable START costs, compared with an append and sync of the disk."""

import json
import os
import subprocess


def bench_admission(program, scratch, count, row):
    """`program` is bench-admission, `scratch` a directory on the disk of the audit log."""
    place = os.path.join(scratch, "admission")
    os.mkdir(place, 0o700)
    done = subprocess.run([program, place, str(count)], stdout=subprocess.PIPE, check=True, timeout=600)
    result = json.loads(done.stdout)
    disk, ours = (result[name]["median_us"] for name in ("disk", "admission"))
    allowed = 1.5 * disk + 100
    row("admission (verify, unseen, decide, durable START)", ours / 1000, "ms",
        f"≤ 1.5 × append + fdatasync + 0.1 = {allowed / 1000:.2f}", ours <= allowed,
        f"{ours:.0f} µs beside {disk:.0f} µs, {count} in turns")
