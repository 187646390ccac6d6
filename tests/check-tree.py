#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tree promises about itself: check-tree.py [ROOT]. Prints each broken promise, one a line.

- every source says its licence (SPDX) near the top
- no open question stands in a comment, no command line goes through a shell
- no package registry's host and no path of somebody's machine is in the tree
- includes point downwards (the floors of the design), and each header is in Meson's lists, which
  are what is installed and what the header tests compile
- the daemon's rooms include downwards only
- the umbrella includes exactly the library headers, sorted
- every man page is in Meson's table
- no source file is longer than an engineer reads in one go
"""
import ast
import os
import re
import subprocess
import sys

ROOT = os.path.abspath(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), ".."))

# Lower floors first; a header includes lower floors only. host/ stands on all of them and has an
# order of its own; programs and plug-ins stand on host/.
FLOORS = [
    {"error", "limits", "quota", "transport_abi", "transport_choice"},
    {"bytes", "fault", "scheduler"},
    {"amounts", "base64", "digest"},
    {"sanitize", "secret", "command_id", "frame", "config", "escapes"},
    {"job"},
    {"display", "envelope", "history", "queue", "route", "utf8"},
    {"token", "policy", "audit", "json", "request", "terminal_filter"},
    {"session"},
    {"qvmremote"},
]
HOST = [{"bulk_pipe", "clock", "failure", "unique_fd"}, {"child", "files", "transport", "unix_socket"}, {"plugin", "environment", "client"}]

# The daemon's rooms, from the ground up. A room includes itself and the rooms below it; its main.cpp
# and what the programs share (common/) stand outside.
DAEMON = "tools/qvm-remote-dom0/"
ROOMS = ["base", "record", "decide", "execute", "machine", "serve", "administer"]

SOURCE = (".cpp", ".hpp", ".c", ".h", ".py", ".sh", ".build", ".in", ".map")
SOURCE_NAMES = ("Makefile", "meson.build", "meson_options.txt")
SCRIPTS = (".ci/",)
MOST_LINES = 700
# Words are put together here, so that this file does not find itself.
OPEN_QUESTIONS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b")
SHELLS = re.compile(r"(?<![\w.])(?:std::|::)?(" + "sys" + "tem|po" + r"pen)\s*\(")
SHELLS_PY = re.compile(r"\bos\.(" + "sys" + "tem|po" + r"pen)\s*\(|shell\s*=\s*" + "True")
HOSTS = re.compile(r"\b(" + "|".join([
    r"(?:deb|security|snapshot|ftp)\.debian\.org", r"(?:files\.)?pythonhosted\.org", r"pypi\.org",
    r"registry\.npmjs\.org", r"(?:static\.)?crates\.io", r"proxy\.golang\.org", r"rubygems\.org",
    r"wrapdb\.mesonbuild\.com", r"repo\.maven\.apache\.org", r"registry\.yarnpkg\.com"]) + r")\b")
PATHS = re.compile(r"(?<![\w@.])/(work/|home/[a-z]\w*/|root/(?!\.qvm))|artifactory|nexus\.", re.I)

problems = []


def problem(where, what):
    problems.append(f"{where}: {what}")


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="surrogateescape") as f:
        return f.read()


def tree():
    """What git knows, or would add: a build directory is neither."""
    out = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         capture_output=True, check=False)
    if out.returncode == 0:
        names = [n for n in out.stdout.decode().split("\0") if n]
    else:  # a release tarball
        names = [os.path.relpath(os.path.join(d, f), ROOT) for d, _, fs in os.walk(ROOT) for f in fs]
    return sorted({n for n in names if os.path.isfile(os.path.join(ROOT, n)) and not n.startswith("build")})


def is_source(name):
    return name.endswith(SOURCE) or os.path.basename(name) in SOURCE_NAMES or name.startswith(SCRIPTS)


def is_data(name):
    return "/corpus/" in name or name.startswith("tests/vectors/") and name.endswith(".txt") or name == "LICENSE"


def check_lines(name):
    text = read(name)
    if is_source(name) and text.count("\n") > MOST_LINES:
        problem(name, f"has {text.count(chr(10))} lines, and more than {MOST_LINES} are too many for one file: "
                      "split it where its responsibilities part")
    if is_source(name) and "SPDX-License-Identifier: GPL-2.0-or-later" not in "\n".join(text.split("\n")[:3]):
        problem(name, "says no licence in its first three lines")
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{name}:{number}"
        if is_source(name) or name.endswith(".md"):
            if OPEN_QUESTIONS.search(line):
                problem(where, "holds an open question; that is an issue")
        if name.endswith((".cpp", ".hpp", ".c", ".h")) and SHELLS.search(line.split("//")[0]):
            problem(where, "runs a command through a shell")
        if name.endswith(".py") and SHELLS_PY.search(line):
            problem(where, "runs a command through a shell")
        if HOSTS.search(line) and name != "tests/check-tree.py":
            problem(where, f"names a package registry: {HOSTS.search(line).group()}")
        if PATHS.search(line) and name != "tests/check-tree.py":
            problem(where, f"holds a path or host of one machine: {PATHS.search(line).group()}")


def pair_of(header):
    """Whose bodies these are: detail/policy_inl.hpp and detail/policy_lint_inl.hpp are policy.hpp's."""
    stem = re.sub(r"(_inl)?\.(hpp|h)$|_inl$", "", header.replace("detail/", ""))
    known = set().union(*FLOORS, *HOST)
    base = stem.rsplit("/", 1)[-1]
    if "detail/" in header and base not in known:
        stem = stem.rsplit("_", 1)[0]
    return stem


def floor_of(header):
    """(major, minor) of "qvmremote/…", larger is higher; None for what has no place."""
    stem = re.sub(r"\.(hpp|h)$", "", header.removeprefix("qvmremote/"))
    host = stem.startswith("host/")
    stem = stem.removeprefix("host/")
    if stem.startswith("detail/"):
        stem = pair_of(stem)
    for level, names in enumerate(HOST if host else FLOORS):
        if stem in names:
            return (1 if host else 0, level)
    return None


def check_includes(name):
    own = name.removeprefix("include/")
    mine = floor_of(own)
    if mine is None:
        problem(name, "has no floor: give it one in tests/check-tree.py")
        return
    for header in re.findall(r'^\s*#\s*include\s+[<"](qvmremote/[^>"]+)[>"]', read(name), re.M):
        theirs = floor_of(header)
        if theirs is None:
            problem(name, f"includes <{header}>, which has no floor")
        elif theirs >= mine:
            # A header and the file of its long bodies are one.
            if not same_pair(own, header):
                problem(name, f"includes <{header}>, which does not stand on a lower floor")
    if not own.startswith("qvmremote/host/"):
        for header in re.findall(r"^\s*#\s*include\s+<((?:sys/|boost/|nlohmann/|unistd|fcntl|poll|pthread)[^>]*)>",
                                 read(name), re.M):
            problem(name, f"includes <{header}>: the library touches no machine")
    for header in re.findall(r'^\s*#\s*include\s+"([^"]+)"', read(name), re.M):
        problem(name, f'includes "{header}": say <qvmremote/…>')


def check_room(name):
    """Within the daemon every include says its room, and points to the same room or a lower one."""
    room = name.removeprefix(DAEMON).split("/")[0]
    if room not in ROOMS:
        if name != DAEMON + "main.cpp":
            problem(name, "stands in none of the daemon's rooms: " + ", ".join(ROOMS))
        return
    for header in re.findall(r'^\s*#\s*include\s+"([^"]+)"', read(name), re.M):
        theirs = header.split("/")[0]
        if theirs == "common" or header == "shipped_rules.hpp":
            continue
        if theirs not in ROOMS:
            problem(name, f'includes "{header}": say "ROOM/{header}"')
        elif ROOMS.index(theirs) > ROOMS.index(room):
            problem(name, f'includes "{header}": {theirs} stands above {room}')


def same_pair(one, other):
    return pair_of(one) == pair_of(other)


def meson_list(name, text):
    found = re.search(r"^" + name + r" = \[(.*?)\]", text, re.M | re.S)
    return ast.literal_eval("[" + found.group(1) + "]") if found else []


def check_lists(names):
    text = read("include/meson.build")
    listed = {n: meson_list(n, text) for n in
              ("qvmremote_headers", "qvmremote_host_headers", "qvmremote_detail_headers")}
    there = {n.removeprefix("include/") for n in names if n.startswith("include/") and n.endswith((".hpp", ".h"))}
    everything = [h for l in listed.values() for h in l]
    for header in sorted(there - set(everything)):
        problem("include/" + header, "is in none of the lists of include/meson.build")
    for header in sorted(set(everything) - there):
        problem("include/meson.build", f"lists {header}, which is not there")
    for name, headers in listed.items():
        if headers != sorted(headers):
            problem("include/meson.build", f"{name} is not sorted")
        if not re.search(r"install_headers\([^)]*\b" + name + r"\b", text, re.S):
            problem("include/meson.build", f"{name} is not installed")
    for header in listed["qvmremote_headers"] + listed["qvmremote_host_headers"]:
        if "/detail/" in header:
            problem("include/meson.build", f"{header} is no public header")
    umbrella = re.findall(r"#include <([^>]+)>", read("include/qvmremote/qvmremote.hpp"))
    want = [h for h in listed["qvmremote_headers"] if h != "qvmremote/qvmremote.hpp"]
    if umbrella != want:
        problem("include/qvmremote/qvmremote.hpp", "does not include the library headers, sorted: "
                + ", ".join(sorted(set(umbrella) ^ set(want)) or ["the order differs"]))


def check_packaging(names):
    pages = read("packaging/man/meson.build")
    for name in names:
        base = os.path.basename(name)
        if name.startswith("packaging/man/") and name.endswith(".md") and f"'{base[:-3]}'" not in pages:
            problem(name, "is not in packaging/man/meson.build")


def main():
    names = tree()
    for name in names:
        if not is_data(name):
            check_lines(name)
        if name.startswith("include/") and name.endswith((".hpp", ".h")):
            check_includes(name)
        if name.startswith(DAEMON) and name.endswith((".cpp", ".hpp", ".h")):
            check_room(name)
    check_lists(names)
    check_packaging(names)
    for line in problems:
        print(line)
    print(f"{len(names)} files, {len(problems)} problems")
    return 1 if problems else 0


sys.exit(main())
