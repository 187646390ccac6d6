#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The CI files for GitHub: they parse, run what is in the tree, .ci/run among it, and need no secret.
On Debian's Python, for its PyYAML."""
import glob
import os
import re
import shlex
import sys

import yaml

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
with open(SOURCE + "/Makefile", encoding="utf-8") as makefile:
    MAKEFILE = makefile.read()
KNOWN = {"apt-get", "git", "bash", "make"}


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")


ran = []
for name in glob.glob(SOURCE + "/.github/workflows/*.yml"):
    with open(name, encoding="utf-8") as f:
        text = f.read()
    check("secrets." not in text, f"{name} needs no secret")
    flow = yaml.safe_load(text)
    # YAML 1.1 reads the key `on` as true.
    check({"push", "pull_request"} <= set(flow[True]), f"{name} says when")
    check(flow["permissions"] == {"contents": "read"}, f"{name} writes nothing")
    for job in flow["jobs"].values():
        check(job["timeout-minutes"] <= 90, "each job ends")
        for step in job["steps"]:
            check(("run" in step) != ("uses" in step), f"a step runs or uses: {step}")
            if "uses" in step:
                check(step["uses"].startswith("actions/"), f"GitHub's own actions alone: {step}")
                continue
            program, *words = shlex.split(step["run"])
            for path in [w for w in [program, *words] if w.startswith((".ci/", "packaging/", "tests/"))]:
                check(os.access(os.path.join(SOURCE, path), os.X_OK), f"{path} is a program of the tree")
                ran.append(path)
            check(program in KNOWN or program in ran, f"a known program: {program}")
            for target in words if program == "make" else []:
                check(re.search(rf"^{re.escape(target)}:", MAKEFILE, re.M), f"a target of the Makefile: {target}")
check(".ci/run" in ran, f".ci/run is run: {ran}")
print("ok")
