#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the common tests over the mock transport with client and daemon under valgrind's memcheck, and fails
after a report about any of their processes. Usage: under_valgrind.py BUILD-DIRECTORY [CASE...]

It takes about a quarter of an hour. Without cases it runs all except those below.
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile

BUILD = os.path.abspath(sys.argv[1])
HERE = os.path.dirname(os.path.abspath(__file__))
VALGRIND = ("valgrind -q --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite "
            "--num-callers=30 --suppressions=")


# Valgrind turns vfork into fork, so the new process cannot say why exec failed. Forty clients under
# valgrind take longer than the hang guard.
LEFT_OUT = ["-exit_codes", "-a_script_runs_in_the_interpreter_that_it_names", "-forty_clients_at_once"]


def main():
    place = tempfile.mkdtemp(prefix="qvm-remote-valgrind-", dir="/tmp")
    os.chmod(place, 0o755)  # the tests run as another user than root
    logs = os.path.join(place, "logs")
    os.mkdir(logs)
    os.chmod(logs, 0o1777)
    shutil.copytree(os.path.join(BUILD, "plugins", "mock"), os.path.join(place, "plugins", "mock"),
                    ignore=shutil.ignore_patterns("*.p"))
    shutil.copy(os.path.join(HERE, "valgrind.supp"), place)
    for name in ("qvm-remote", "qvm-remote-dom0"):
        where = os.path.join("tools", name, name)
        path = os.path.join(place, where)
        os.makedirs(os.path.dirname(path))
        with open(path, "w") as f:
            f.write(f"#!/bin/sh\nexec {VALGRIND}{place}/valgrind.supp --log-file={logs}/{name}.%p {BUILD}/{where} \"$@\"\n")
        os.chmod(path, 0o755)
    common = os.path.join(HERE, "common.py")
    env = dict(os.environ, QVMREMOTE_REQUESTS=os.environ.get("QVMREMOTE_REQUESTS", "10"))
    code = subprocess.run([common, place, "--transport", "mock", *(sys.argv[2:] or LEFT_OUT)], env=env).returncode
    reports = 0
    for path in sorted(glob.glob(os.path.join(logs, "*"))):
        with open(path, errors="replace") as f:
            said = f.read()
        if said:
            reports += 1
            print(f"--- {os.path.basename(path)}\n{said}", flush=True)
    print(f"{len(os.listdir(logs))} processes under valgrind, {reports} with a report")
    shutil.rmtree(place)
    return 1 if code or reports else 0


sys.exit(main())
