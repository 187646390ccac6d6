#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands with many words and long ones, over the mock transport: long_arguments.py BUILD [CASE...].

The header of a request holds at most 1024 words and 16 KiB. Longer arguments travel in the body, which makes
no difference for the command, the policy, the operator and the audit log.
"""
import hashlib
import json
import os
import subprocess

from fixture import HANG, case, check, equal, eventually, main, operator
from policies import begin

PRINT = r"%s\0"
LARGE = [str(i % 10) * 30000 for i in range(30)]  # 900 KB


def starts(f):
    return [r for r in f.audit() if r["kind"] == "START"]


def record_of(words):
    data = b"".join(w.encode() + b"\0" for w in words)
    return len(words), hashlib.sha256(data).hexdigest()


@case
def many_words_and_long_ones_arrive_as_they_were(f):
    begin(f, "work exec:printf ** allow\n")
    for words in (["x"] * 1021, ["x"] * 1022, ["x"] * 1023, ["a b", ""] * 2500, ["x" * 15000], ["x" * 17000],
                  ["x" * 131071], LARGE, ["y"] * 32766):
        got = f.run("--exec", "printf", PRINT, *words)
        equal((got.returncode, got.stderr), (0, b""))
        equal(got.stdout, b"".join(w.encode() + b"\0" for w in words))
    last = starts(f)[-1]
    equal((last["argv_count"], last["argv_sha256"]), record_of(["printf", PRINT] + ["y"] * 32766))


@case
def policy_decides_about_the_words_wherever_they_travel(f):
    begin(f, "work exec:printf ** allow\n")
    for words in (["x"] * 1000, ["x"] * 5000, LARGE):
        equal(f.run("--exec", "printf", "%.0s", *words).returncode, 0)
        equal(f.dom0("policy", "check", "work", "--exec", "--", "printf", "%.0s", *words).returncode, 0)
        got = f.run("--exec", "echo", *words)
        check(got.returncode == 126 and b"no rule of dom0's policy allows this" in got.stderr, got.stderr[:300])
        refused = [r for r in f.audit() if r["kind"] == "REFUSED"][-1]
        if len(words) > 1000:
            equal((refused["argv_count"], refused["argv_sha256"]), record_of(["echo", *words]))
        got = f.dom0("policy", "check", "work", "--exec", "--", "echo", *words)
        equal((got.returncode, got.stdout.splitlines()[0].split()[-1]), (126, b"deny"))
    equal(f.run("--dry-run", "--exec", "echo", *LARGE).returncode, 126)


@case
def an_operator_is_asked_about_all_words(f):
    begin(f, "work exec:printf ** ask\n")
    words = ["printf", "%s,"] + [f"word {i}" for i in range(5000)]
    client = f.popen("--exec", *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    eventually(lambda: f.dom0("approvals", "list", "--json").stdout, "a question")
    serial = str(json.loads(f.dom0("approvals", "list", "--json").stdout.splitlines()[0])["serial"])
    asked = json.loads(f.dom0("approvals", "show", serial, "--json").stdout)
    equal(asked["argv"], words)
    equal(operator(f, "approvals", "allow", serial, asked["digest"]).returncode, 0)
    out, err = client.communicate(timeout=HANG)
    equal((client.returncode, out, err), (0, "".join(w + "," for w in words[2:]).encode(), b""))


@case
def a_script_and_its_arguments(f):
    begin(f, "work level:full allow\n")
    path = os.path.join(f.path, "s.sh")
    for padding in (0, 12000, 200000):
        with open(path, "w") as s:
            s.write("#" * padding + "\nprintf '%s\\0' \"$@\"\n")
        for words in (["x"] * 1024, ["a b", ""] * 2500, ["x" * 100000], LARGE[:25]):
            got = f.run("--script", path, *words)
            equal((got.returncode, got.stderr), (0, b""))
            equal(got.stdout, b"".join(w.encode() + b"\0" for w in words))


@case
def what_exceeds_a_limit_names_it(f):
    begin(f, "work level:full allow\n")
    path = os.path.join(f.path, "s.sh")
    with open(path, "w") as s:
        s.write("true\n")
    large = ["x" * 120000] * 9
    for words, says in ((["--exec", "true", *large], b"the size limit of 1 MiB"),
                        (["--exec", "true"] + ["x"] * 32768, b"more than 32768 words"),
                        (["--script", path, *large], b"the size limit of 1 MiB, its arguments included"),
                        (["--script", path] + ["x"] * 32769, b"more than 32768 words")):
        got = f.run(*words)
        check(got.returncode == 1 and says in got.stderr and b"--script" not in got.stderr, got.stderr[:300])
        if words[0] == "--exec":
            asked = f.dom0("policy", "check", "work", "--exec", "--", *words[1:])
            check(asked.returncode == 1 and says in asked.stderr, asked.stderr[:300])
    equal(starts(f), [])


main()
