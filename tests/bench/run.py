#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures speed and size, and compares them with their limits. Writes a Markdown table, JSON,
and charts in BUILD/bench. The exit code is 1 if a limit is missed.

    run.py BUILD-DIRECTORY [--quick] [--json FILE] [--only WORD]

It measures the release build, installed by `meson install` into a scratch directory: the daemon over the
default transport, and qubes of the stand-ins in tests/standin, with history, log and audit on. All of it
is below the build directory, on a real disk. ssh is the installed client with an own sshd (ssh.py). It
writes nothing outside the build directory and /tmp.
"""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import types

from rows import BUILD, ROUNDS, SCRATCH, SHORT, args, program, row, rows, table

import load
import parts
from admission import bench_admission
from charts import bench_charts
from houses import Installed, clear
from jobs import bench_jobs
from qrexec import bench_qrexec
from ssh import Ssh
from terminal import bench_terminal

HERE = os.path.dirname(os.path.abspath(__file__))
PARTS = {"protocol": parts.bench_protocol, "start": parts.bench_start,
         "embedded": parts.bench_embedded, "many": parts.bench_many, "bulk": parts.bench_bulk,
         "terminal": bench_terminal,
         "idle": load.bench_idle, "flood": load.bench_flood, "neighbour": load.bench_neighbour,
         "history": parts.bench_history, "charts": bench_charts, "old": parts.bench_protocol1, "mock": parts.bench_mock,
         "admission": lambda _: bench_admission(program("admission"), SCRATCH, 100 if args.quick else 500,
                                                row),
         "jobs": bench_jobs,
         "qrexec": lambda _: bench_qrexec(BUILD, SCRATCH, ROUNDS)}


def version_of(*words):
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def machine(client):
    model = "unknown"
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")),
                     model)
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "disk": version_of("stat", "-f", "-c", "%T", BUILD), "load": f"{os.getloadavg()[0]:.1f}",
            "openssl": version_of("openssl", "version"), "ssh": version_of("ssh", "-V"),
            "bash": version_of("bash", "--version"),
            "qvm-remote": version_of(client, "--version"),
            "commit": version_of("git", "-C", HERE, "rev-parse", "--short", "HEAD")}


def main():
    if os.path.exists(os.path.join(BUILD, "build.ninja")):
        subprocess.run(["meson", "compile", "-C", BUILD, "bench-programs"], check=True,
                       stdout=sys.stderr)
    clear()
    os.makedirs(SCRATCH, 0o755)
    os.mkdir(SHORT, 0o700)
    # For minutes after an inode was freed, ext4 does not use it again, but checks it for every new
    # file: 0.5 ms instead of 0.02 ms where a build or a test has just removed files. With this
    # attribute it puts each house into another part of the disk.
    with contextlib.suppress(OSError):
        subprocess.run(["chattr", "+T", SCRATCH], stderr=subprocess.DEVNULL)
    if version_of("stat", "-f", "-c", "%T", SCRATCH) == "tmpfs":
        print("bench: the build directory is on a tmpfs: its fdatasync costs nothing, so the rows "
              "with a durable write say too little", file=sys.stderr)
    chosen = {name: f for name, f in PARTS.items() if not args.only or args.only in name}
    try:
        with contextlib.ExitStack() as stack:
            state = types.SimpleNamespace(programs=Installed(), ssh=None)
            about = machine(state.programs.client)
            if {"start", "bulk", "terminal"} & chosen.keys():
                state.ssh = Ssh()
                stack.callback(state.ssh.stop)
            for name, part in chosen.items():
                print(f"{name}:", file=sys.stderr, flush=True)
                try:
                    part(state)
                except Exception as e:  # measure the rest anyway
                    row(f"{name} was not measured", 0, "", "", False, f"{type(e).__name__}: {e}")
            about["load after"] = f"{os.getloadavg()[0]:.1f}"
    finally:
        clear()
    missed = [r for r in rows if r["ok"] is False]
    print("; ".join(f"{k} {v}" for k, v in about.items()) + "\n")
    print(table())
    if missed:
        print(f"\n{len(missed)} bar(s) missed: " + ", ".join(r["what"] for r in missed))
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"machine": about, "quick": args.quick, "rows": rows}, f, indent=1,
                      ensure_ascii=False)
            f.write("\n")
    return 1 if missed else 0


signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
sys.exit(main())
