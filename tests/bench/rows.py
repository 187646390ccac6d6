# SPDX-License-Identifier: GPL-2.0-or-later
"""What all parts share: the arguments, the rows with their limits ("bars"), and the launcher that starts
every measured program."""

import argparse
import json
import os
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("build")
parser.add_argument("--quick", action="store_true", help="fewer rounds and less data: a first look")
parser.add_argument("--json", metavar="FILE")
parser.add_argument("--only", metavar="WORD", help="the parts whose name holds this")
args = parser.parse_args()

BUILD = os.path.abspath(args.build)
PROGRAMS = os.path.join(BUILD, "tests", "bench")
SCRATCH = os.path.join(BUILD, "bench-scratch")
# The path of a socket must be short, so directories with sockets are here.
SHORT = os.path.join("/tmp", f"qvm-remote-bench-{os.getpid()}")
ROUNDS = 60 if args.quick else 200
GIB = 1 << 30
HANG = 600

rows = []


def row(what, value, unit, bar=None, ok=None, note=""):
    """`bar` is the limit as text; `ok` says whether it was met, and is None without a limit."""
    rows.append({"what": what, "value": value, "unit": unit, "bar": bar, "ok": ok, "note": note})
    print(f"  {what}: {value:.4g} {unit}" + (f" (bar {bar})" if bar else "") +
          ("" if ok is None else " ok" if ok else " MISSED"), file=sys.stderr, flush=True)


def ratio_row(what, ours, theirs, bar, note="", extra_us=0.0):
    """A ratio of medians that must not exceed `bar`; `extra_us` is added to the allowed time."""
    allowed = bar * theirs + extra_us
    row(what, ours / theirs, "×", f"≤ {bar}", ours <= allowed,
        f"{ours / 1000:.2f} ms / {theirs / 1000:.2f} ms" + ("; " + note if note else ""))


def memory_row(what, kib, most=32, note=""):
    row(what, kib / 1024, "MiB", f"≤ {most}", kib <= most * 1024, note)


def failures_row(*results):
    """Adds a row only if a command failed."""
    failed = sum(r["failed"] for result in results for r in result["rows"])
    if failed:
        row("commands that failed", failed, "", "0", False)


def table():
    lines = ["| what | measured | bar | | |", "|---|---|---|---|---|"]
    for r in rows:
        mark = {None: "", True: "ok", False: "**missed**"}[r["ok"]]
        number = f"{r['value']:.0f}" if r["value"] >= 100 else f"{r['value']:.2f}"
        lines.append(f"| {r['what']} | {number} {r['unit']} | {r['bar'] or ''} | {mark} | {r['note']} |")
    return "\n".join(lines)


def program(name):
    return os.path.join(PROGRAMS, "bench-" + name)


def launching(*words, env=None):
    """Starts the launcher. On SIGTERM it ends its work and prints its results."""
    return subprocess.Popen([program("launch"), *map(str, words)], env=env, stdout=subprocess.PIPE)


def launch(*words, env=None):
    done = subprocess.run([program("launch"), *map(str, words)], env=env, stdout=subprocess.PIPE,
                          check=True, timeout=HANG)
    return json.loads(done.stdout)


def good(result):
    return all(r["failed"] == 0 for r in result["rows"])


def ms(result):
    return result["median_us"] / 1000


# The time of `bash -c true` on the machine for which the limits were written. A limit in seconds or per
# second is for that machine; other limits compare with a measurement of the same run.
REFERENCE_BASH_US = 1300


def slowness_by(bash_us):
    """How many times longer a process takes here, at least 1, and a text that says so."""
    return max(1.0, bash_us / REFERENCE_BASH_US), f"where bash -c true takes 1.3 ms; here {bash_us / 1000:.1f}"


def slowness():
    """The same, by a measurement now."""
    return slowness_by(launch("--count", ROUNDS, "--warmup", 10, "--", "bash", "-c",
                              "true")["rows"][0]["median_us"])


def fdatasync():
    """The median, and the part of it that may be added to the limit of rows with a durable write."""
    sync = launch("--fdatasync", os.path.join(SCRATCH, "sync"), "--count", ROUNDS)
    return ms(sync), sync["median_us"] if ms(sync) > 0.3 else 0.0
