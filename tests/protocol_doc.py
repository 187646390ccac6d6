#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""doc/PROTOCOL.md says what the headers say: frames, reasons, limits, and vectors that exist; doc/JSON.md the names of errors.

QVMREMOTE_TEST_ACCEPT=1 writes the table of reasons anew and reports a skip (77).
"""

import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
wrong = []


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as f:
        return f.read()


def x_rows(text, macro):
    """The rows of an X-macro: the text between its name and the first line without a backslash."""
    body = re.search(r"#define " + macro + r"\(X\)(.*?[^\\])\n", text, re.S).group(1)
    return re.findall(r"X\(((?:[^()\"]|\"[^\"]*\")*)\)", body)


def table(document, name):
    """Cells of the rows behind a marker."""
    found = document.split(f"<!-- table: {name} -->\n", 1)
    if len(found) != 2:
        sys.exit(f"no table {name}")
    block = found[1].split("\n\n", 1)[0]
    rows = [[c.strip() for c in line.strip("|").split("|")]
            for line in block.splitlines() if line.startswith("|")]
    return rows[2:]


def compare(what, documented, actual):
    for missing in [r for r in actual if r not in documented]:
        wrong.append(f"{what}: the document lacks {missing}")
    for extra in [r for r in documented if r not in actual]:
        wrong.append(f"{what}: the headers do not say {extra}")


document = read("doc", "PROTOCOL.md")

frames = []
for row in x_rows(read("include", "qvmremote", "frame.hpp"), "QVMREMOTE_FRAMES"):
    name, number, sender, tag = [c.strip() for c in row.split(",")]
    frames.append([number, name.upper(), sender, {"tagged": "yes", "none": "no"}[tag]])
compare("frames", [row[:4] for row in table(document, "frames")], frames)

reasons = []
for row in x_rows(read("include", "qvmremote", "error.hpp"), "QVMREMOTE_ERRORS"):
    name, number, text = re.match(r'(\w+), (\d+), "(.*)"$', row).groups()
    reasons.append([number, f"`{name}`", text])
if os.environ.get("QVMREMOTE_TEST_ACCEPT") == "1":
    marker = "<!-- table: reasons -->\n"
    before, after = document.split(marker)
    after = after[after.index("\n## "):]
    lines = ["| value | name | |", "|---|---|---|"] + ["| " + " | ".join(r) + " |" for r in reasons]
    with open(os.path.join(ROOT, "doc", "PROTOCOL.md"), "w", encoding="utf-8") as f:
        f.write(before + marker + "\n".join(lines) + "\n" + after)
    sys.exit(77)
compare("reasons", table(document, "reasons"), reasons)

faults = []
for row in x_rows(read("include", "qvmremote", "fault.hpp"), "QVMREMOTE_FAULTS"):
    name, text = re.match(r'(\w+), "(.*)"$', row).groups()
    faults.append([f"`{name}`", text])
compare("names of errors", table(read("doc", "JSON.md"), "faults"), faults)

limits = {}
for name, value in re.findall(r"inline constexpr \S+ (\w+) = ([^;]+);",
                              read("include", "qvmremote", "limits.hpp")):
    product = 1
    for factor in value.replace("'", "").split("*"):
        product *= int(factor)
    limits[name] = product
documented = table(document, "limits")
if len(documented) < 10:
    wrong.append("limits: the table is short")
for row in documented:
    name, value = row[0].strip("`"), int(row[1])
    if limits.get(name) != value:
        wrong.append(f"limits: {name} is {limits.get(name)}, not {value}")

# The request header by itself: its fixed numbers, as the decoder has them.
envelope = read("include", "qvmremote", "envelope.hpp")
header = document.split("<!-- table: header -->")[1].split("\n\n")[0]
for name, number in re.findall(r"^    (\w+) = (\d+),", envelope, re.M):
    if not re.search(rf"\b{number} {name}\b", header):
        wrong.append(f"request header: kind {number} is {name}")
causes = re.search(r"enum class end_cause.*?\};", read("include", "qvmremote", "session.hpp"), re.S)
for name, number in re.findall(r"^    (\w+) = (\d+),", causes.group(0), re.M):
    if not re.search(rf"^\| {number} \| {name.replace('_', ' ')}", document, re.M):
        wrong.append(f"causes: {number} is {name}")

# Vectors that the text names exist.
vectors = set(re.findall(r"^(\S+) = ", read("tests", "vectors", "protocol2.txt"), re.M))
for name in re.findall(r"`((?:frame|envelope|token|session)\.[a-z_.0-9]+)`", document):
    if name not in vectors:
        wrong.append(f"no vector {name}")

for line in wrong:
    print(line, file=sys.stderr)
sys.exit(1 if wrong else 0)
