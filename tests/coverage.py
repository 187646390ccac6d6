#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How many lines of the protocol's headers (include/qvmremote/*.hpp, not host/) the tests reach that ran
in a build with -Db_coverage=true: a table, the lines that none reached, and exit code 1 below the bar.

    coverage.py BUILD-DIRECTORY [LEAST-PERCENT]
"""

import collections
import glob
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADERS = os.path.join(ROOT, "include", "qvmremote")
BUILD = os.path.abspath(sys.argv[1])
LEAST = float(sys.argv[2]) if len(sys.argv) > 2 else 95


def counts(data):
    """(header, line) and whether it was reached, as one program saw it."""
    done = subprocess.run(["gcov", "--json-format", "--stdout", data], cwd=BUILD, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, check=True)
    out = []
    for text in done.stdout.splitlines():
        for file in json.loads(text)["files"]:
            path = os.path.normpath(os.path.join(BUILD, file["file"]))
            if os.path.dirname(path) == HEADERS and path.endswith(".hpp"):
                out += [(os.path.basename(path), line["line_number"], line["count"] > 0) for line in file["lines"]]
    return out


def ranges(numbers):
    out = []
    for n in numbers:
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return " ".join(f"{a}-{b}" if a != b else str(a) for a, b in out)


def main():
    reached = collections.defaultdict(dict)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(counts, glob.glob(os.path.join(BUILD, "**", "*.gcda"), recursive=True)):
            for header, line, was in found:
                reached[header][line] = reached[header].get(line, False) or was
    if not reached:
        sys.exit("coverage: no test has run in " + BUILD)
    print("| header | lines | reached | not reached |\n|---|---|---|---|")
    for header, lines in sorted(reached.items()):
        missed = sorted(n for n, was in lines.items() if not was)
        print(f"| {header} | {len(lines)} | {100 * (1 - len(missed) / len(lines)):.1f} % | {ranges(missed)} |")
    every = [was for lines in reached.values() for was in lines.values()]
    percent = 100 * sum(every) / len(every)
    print(f"\n{sum(every)} of {len(every)} lines: {percent:.1f} %, at least {LEAST:g} wanted")
    return 0 if percent >= LEAST else 1


sys.exit(main())
