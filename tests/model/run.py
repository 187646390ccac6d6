#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Searches the model of the protocol: as it is, for what it must be able to do, and with faults.

As it is, no property may fail, and every state within the bounds is visited. With a fault seeded, the
property that is named beside it must fail: one that cannot fail proves nothing.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "protocol.pml")
JOBS = os.path.join(HERE, "jobs.pml")
DEPTH = 10000
MEMORY_MIB = 2048

# What a property looks like where pan prints it.
PROPERTIES = {
    "an ID runs once": "executions[id_of[by[n]]]<=1",
    "what the user wants once runs once": "(executions[0]+executions[1])<=1",
    "START is durable before exec": "(line[id_of[by[n]]]==",
    "nothing starts after revoke or panic": "!(revoked)",
    "what runs ends with revoke and panic": "!(alive[0])",
    "nothing is begun against the policy": "(policy_read!=",
    "nothing starts for a session that is over": "(stage[n]==",
    "success has an END that matches": "out[a].type[(out[a].count-1)]==",
}

# Challenges in all lives of the daemon, pieces of output, and whether an operator revokes and panics.
# Both at once would be some 10^7 states.
ANSWERS = {"sessions": 2, "pieces": 2, "operators": 1}
REPLAYS = {"sessions": 3, "pieces": 2, "operators": 0}

# A fault shows within less.
TWICE = {"sessions": 2, "pieces": 1, "operators": 0}
ACTS = {"sessions": 1, "pieces": 1, "operators": 1}
ACTS_BETWEEN = {"sessions": 2, "pieces": 1, "operators": 1}
OUTPUT = {"sessions": 1, "pieces": 2, "operators": 0}

GOALS = [
    ("an operator allows, and it runs", 1, ACTS),
    ("a success with all of its output", 2, OUTPUT),
    ("refused, then tried as a new command, which succeeds", 3, TWICE),
    ("the ID of a daemon that died is known to the next", 4, TWICE),
    ("revoked while START is on its way to the disk", 5, ACTS),
    ("the client gone while START is on its way to the disk", 6, ACTS),
    ("a second attempt runs under a new daemon", 7, TWICE),
]

FAULTS = [
    ("ID_AFTER_EXEC|UNCHECKED", "an ID runs once", TWICE),
    ("IDS_FORGOTTEN", "an ID runs once", TWICE),
    ("EXEC_BEFORE_SYNC", "START is durable before exec", TWICE),
    ("EXEC_BEFORE_SYNC|UNCHECKED", "an ID runs once", TWICE),
    ("CHALLENGE_REPEATS|IDS_FORGOTTEN", "an ID runs once", TWICE),
    ("CHALLENGE_REUSED", "what the user wants once runs once", TWICE),
    ("REJECTED_RETRIED", "what the user wants once runs once", TWICE),
    ("SESSIONLESS_START", "nothing starts for a session that is over", TWICE),
    ("DECIDED_ONCE", "nothing is begun against the policy", ACTS),
    ("WAITING_SURVIVES", "nothing starts after revoke or panic", ACTS),
    ("RECORDING_SURVIVES", "nothing starts after revoke or panic", ACTS),
    ("PANIC_FORGOTTEN", "nothing starts after revoke or panic", ACTS),
    ("KEY_CACHED", "nothing starts after revoke or panic", ACTS_BETWEEN),
    ("RUNNING_SURVIVES", "what runs ends with revoke and panic", ACTS),
    ("EOF_SUCCEEDS", "success has an END that matches", OUTPUT),
    ("ANY_KEY", "success has an END that matches", TWICE),
    ("ANY_SEQUENCE", "success has an END that matches", OUTPUT),
    # END's counts are a second line behind the sequence: one piece of output they protect alone.
    ("ANY_SEQUENCE", None, {**OUTPUT, "pieces": 1}),
    ("ANY_SEQUENCE|UNCOUNTED", "success has an END that matches", {**OUTPUT, "pieces": 1}),
]

# The same for jobs.pml.
JOB_PROPERTIES = {
    "an ID runs once": "executions<=1",
    "the secret is there before the launch": "files",
    "one END": "end_lines==1",
    "one owner of the output": "writers",
    "END says what the keeper has written": "end_is_real==end_file",
}
JOB_GOALS = [
    ("a job ends under a later daemon", 1),
    ("the keeper is killed", 2),
    ("the outcome is unknown after a restart", 3),
]
JOB_FAULTS = [
    ("J_ENDS_ALL", "END says what the keeper has written"),
    ("J_LAUNCHES_AGAIN", "an ID runs once"),
    ("J_SPARES_STRANGER", "END says what the keeper has written"),
    ("J_END_FORGOTTEN", "END says what the keeper has written"),
    ("J_END_TWICE", "one END"),
    ("J_TWO_WRITERS", "one owner of the output"),
    ("J_LATE_FILES", "the secret is there before the launch"),
]


def build(directory, model=MODEL):
    """The search program. pan.c's own warnings are its generator's."""
    subprocess.run(["spin", "-a", model], cwd=directory, check=True)
    subprocess.run(["gcc", "-w", "-O1", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEMORY_MIB}",
                    "-o", "pan", "pan.c"], cwd=directory, check=True)


def constants(model=MODEL):
    with open(model, encoding="utf-8") as f:
        return {name: int(value) for name, value in re.findall(r"#define ([A-Z_]+) +(\d+)", f.read())}


def search(directory, bounds, faults=0, goal=0):
    """The assertion that failed, or None, and how many states were visited."""
    env = {**os.environ, "MODEL_FAULTS": str(faults), "MODEL_GOAL": str(goal)}
    for name, value in bounds.items():
        env["MODEL_" + name.upper()] = str(value)
    out = subprocess.run([os.path.join(directory, "pan"), f"-m{DEPTH}", "-w22"], cwd=directory, env=env,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout
    failed = re.search(r"assertion violated (.*) \(at depth \d+\)", out)
    states = re.search(r"(\d+) states, stored", out)
    errors = re.search(r"errors: (\d+)", out)
    whole = not re.search(r"max search depth too small|out of memory|memory limit", out)
    if not states or not errors or not whole or (errors.group(1) == "0") != (failed is None):
        sys.exit(f"the search is not what it should be:\n{out}")
    if not failed and "Search not completed" in out:
        sys.exit(f"the search is not complete:\n{out}")
    return failed and failed.group(1), int(states.group(1))


def main():
    bad = 0
    begin = time.monotonic()

    def tell(ok, what, states):
        nonlocal bad
        bad += not ok
        print(f"{'ok    ' if ok else 'FAILED'} {what} ({states} states)", flush=True)

    numbers = constants()
    print(f"Bounds: {numbers['ATTEMPTS']} attempts at one command, {numbers['LIVES']} lives of the daemon; "
          "what an agent keeps back, repeats and reorders has no bound", flush=True)
    with tempfile.TemporaryDirectory(prefix="qvm-remote-model-") as directory:
        build(directory)
        for bounds in (ANSWERS, REPLAYS):
            failed, states = search(directory, bounds)
            shown = ", ".join(f"{value} {name}" for name, value in bounds.items())
            tell(failed is None, f"every property holds with {shown}" +
                 (f": not {failed}" if failed else ""), states)
            if failed:
                subprocess.run([os.path.join(directory, "pan"), "-r"], cwd=directory, check=False)
        for what, goal, bounds in GOALS:
            failed, states = search(directory, bounds, goal=goal)
            tell(failed is not None and f"goal == {goal}" in failed, f"can happen: {what}", states)
        for names, wanted, bounds in FAULTS:
            failed, states = search(directory, bounds, sum(numbers[n] for n in names.split("|")))
            if wanted:
                tell(failed is not None and PROPERTIES[wanted] in failed, f"{names} is caught: {wanted}" +
                     (f"; failed: {failed}" if failed and PROPERTIES[wanted] not in failed else ""), states)
            else:
                tell(failed is None, f"{names} does no harm with {bounds['pieces']} piece of output" +
                     (f"; failed: {failed}" if failed else ""), states)
    numbers = constants(JOBS)
    print(f"Jobs: {numbers['JOB_LIVES']} lives of the daemon, each of which may end at any step", flush=True)
    with tempfile.TemporaryDirectory(prefix="qvm-remote-model-") as directory:
        build(directory, JOBS)
        failed, states = search(directory, {})
        tell(failed is None, "every property of a job holds" + (f": not {failed}" if failed else ""), states)
        for what, goal in JOB_GOALS:
            failed, states = search(directory, {}, goal=goal)
            tell(failed is not None and f"goal == {goal}" in failed, f"can happen: {what}", states)
        for name, wanted in JOB_FAULTS:
            failed, states = search(directory, {}, numbers[name])
            tell(failed is not None and JOB_PROPERTIES[wanted] in failed, f"{name} is caught: {wanted}" +
                 (f"; failed: {failed}" if failed and JOB_PROPERTIES[wanted] not in failed else ""), states)
    print(f"{time.monotonic() - begin:.0f} s")
    sys.exit(1 if bad else 0)


main()
