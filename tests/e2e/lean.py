#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks that the client stays small (DESIGN.md §1): the libraries it loads, its size, and its system calls.

Each budget is the measured value when it was set, plus about a tenth. State the reason when you raise one.
Usage: lean.py BUILD-DIRECTORY
"""

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

# Meson sets this for the modules of the build; the loader would search there first, with extra
# system calls.
os.environ.pop("LD_LIBRARY_PATH", None)

from fixture import CLIENT, HANG, Fixture  # noqa: E402


LIBRARIES = {"libc.so.6", "libcrypto.so.3"}
# Size of the program's loaded segments in the file. It was 1 705 000 before jobs, doctor and --json; a plain command
# touches none of their pages.
LOADED_BYTES = 2_200_000
# 62 of them read the dispositions of the signals, since no call reads all at once.
CALLS_VERSION = 110
CALLS_TRUE = 285

failures = []


def budget(what, got, most):
    print(f"{what}: {got} of {most}")
    if got > most:
        failures.append(what)


def loaded_bytes(path):
    """The bytes of all PT_LOAD segments: debug information does not count."""
    with open(path, "rb") as f:
        data = f.read()
    assert data[:6] == b"\x7fELF\x02\x01", "not a 64-bit ELF file"
    at, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = (struct.unpack_from("<IIQQQQ", data, at + i * size) for i in range(count))
    return sum(s[5] for s in segments if s[0] == 1)


def calls(env, *words):
    """How many system calls a command makes, with its children."""
    with tempfile.NamedTemporaryFile("r") as out:
        done = subprocess.run(["strace", "-f", "-c", "-o", out.name, *words], env=env, timeout=HANG,
                              stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        total = [line for line in out.read().splitlines() if line.endswith(" total")][-1]
    return int(total.split()[3])


def main():
    ldd = subprocess.run(["ldd", CLIENT], stdout=subprocess.PIPE, text=True, check=True).stdout
    names = {os.path.basename(line.split()[0]) for line in ldd.splitlines() if line.strip()}
    if any("asan" in n or "ubsan" in n or "tsan" in n for n in names):
        print("skipped: a sanitizer's build")
        return 77
    extra = {n for n in names if not re.match(r"linux-(vdso|gate)|ld-linux", n)} - LIBRARIES
    print("libraries: " + " ".join(sorted(names)))
    if extra:
        failures.append("libraries: " + " ".join(sorted(extra)))
    budget("loaded bytes", loaded_bytes(CLIENT), LOADED_BYTES)
    if failures:
        print("over budget: " + "; ".join(failures))
        return 1
    if not shutil.which("strace"):
        print("skipped: system calls are not counted without strace, which is not installed")
        return 77

    with contextlib.ExitStack() as stack:
        scratch = tempfile.mkdtemp(prefix="qvm-remote-lean-", dir="/tmp")
        stack.callback(shutil.rmtree, scratch, True)
        f = Fixture(scratch).start(peers="work")
        stack.callback(f.stop)
        env = f.env()
        try:
            subprocess.run(["strace", "-f", "-c", "-o", "/dev/null", "true"], check=True,
                           capture_output=True)
        except subprocess.CalledProcessError:
            print("skipped: strace may not trace here")
            return 77
        calls(env, CLIENT, "true")  # makes the directories of the day
        budget("system calls of qvm-remote --version", calls(env, CLIENT, "--version"),
               CALLS_VERSION)
        # The number of wake-ups depends on timing, so take the minimum of some runs.
        budget("system calls of qvm-remote true", min(calls(env, CLIENT, "true") for _ in range(5)),
               CALLS_TRUE)
    if failures:
        print("over budget: " + "; ".join(failures))
    return 1 if failures else 0


sys.exit(main())
