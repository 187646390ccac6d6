#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tags put each file at the right end, and uninstalling takes exactly these away again.

    ends.py SOURCE-DIRECTORY BUILD-DIRECTORY
"""
import os
import subprocess
import sys
import tempfile

SOURCE, BUILD = (os.path.abspath(p) for p in sys.argv[1:3])


def files(top):
    return {os.path.relpath(os.path.join(d, f), top) for d, _, fs in os.walk(top) for f in fs}


def must(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100)
    if done.returncode != 0:
        sys.exit(f"{words}: exit code {done.returncode}\n{done.stdout}")


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")


def install(top, tags):
    must("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--tags", tags, "--destdir", top)
    return files(top)


def uninstall(top, end):
    must(sys.executable, os.path.join(SOURCE, "packaging/install/uninstall.py"), BUILD, end, top)
    return files(top)


def names(paths):
    return {os.path.basename(p) for p in paths}


with tempfile.TemporaryDirectory(prefix="qvm-remote-ends-", dir="/tmp") as scratch:
    qube, dom0, devel, both = (os.path.join(scratch, n) for n in ("qube", "dom0", "devel", "both"))
    there = {end: install(top, tags) for end, top, tags in
             (("qube", qube, "qube,transport"), ("dom0", dom0, "dom0,transport"), ("devel", devel, "devel"))}
    check("qvm-remote" in names(there["qube"]), "the client is at the qube's end")
    check(not {"qvm-remote-dom0", "qvm-remote-dom0.service"} & names(there["qube"]), "the daemon is not")
    check({"qvm-remote-dom0", "qvm-remote-dom0.service"} <= names(there["dom0"]), "the daemon is in dom0")
    check("qvm-remote" not in names(there["dom0"]), "the client is not")
    check("mock.so" not in names(there["dom0"] | there["qube"]), "the mock transport is at neither end")
    check({"mock.so", "qvm-remote.pc", "qvmremote.hpp"} <= names(there["devel"]), "what developers need")

    everything = install(os.path.join(scratch, "all"), "qube,dom0,transport,devel")
    must("meson", "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", os.path.join(scratch, "untagged"))
    untagged = files(os.path.join(scratch, "untagged")) - everything
    check(not untagged, f"every file has one of the four tags: {untagged}")

    # Data at the places where it lies for real stays, at either end.
    data = {"etc/qubes/remote.d/work.key", "etc/qubes/policy.d/30-user.policy", "root/.qvm-remote/auth.key"}
    for top, tags in ((qube, "qube,transport"), (dom0, "dom0,transport"), (both, "qube,dom0,transport")):
        for path in data:
            os.makedirs(os.path.dirname(os.path.join(top, path)), exist_ok=True)
            with open(os.path.join(top, path), "w", encoding="ascii") as f:
                f.write("data\n")
        install(top, tags)
    check(uninstall(qube, "qube") == data, "uninstall-vm leaves data alone, and nothing else")
    check(uninstall(dom0, "dom0") == data, "uninstall-dom0 leaves data alone, and nothing else")
    check(uninstall(both, "qube") == there["dom0"] | data, "the other end still works")
    check(uninstall(both, "dom0") == data, "then nothing is left of either")
    check(uninstall(both, "dom0") == data, "and a second time is harmless")
print("ok")
