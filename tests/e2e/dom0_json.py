#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""--json of the subcommands of qvm-remote-dom0: one object, as its schema says, with the exit code.
Usage: dom0_json.py BUILD-DIRECTORY [CASE...]
"""

import json
import os
import subprocess

from fixture import BUILD, DAEMON, HANG, KEY, case, check, equal, eventually, main
from house import House
from policies import rules
from schema import validate


def run(house, *words, stdin=None, **env):
    path = os.path.join(BUILD, "tests", "standin")
    return house.f.dom0(*words, stdin=stdin, env={
        "PATH": path + ":" + os.environ["PATH"], "QVMREMOTE_STANDIN": house.machine.path, **env})


def ask(house, schema, *words, code=0, stdin=None, **env):
    """The object that a subcommand prints: --json stands before it and, where it may, after it."""
    got = run(house, "--json", *words, stdin=stdin, **env)
    check(got.stdout.count(b"\n") == 1, got)
    out = json.loads(got.stdout)
    validate("dom0-" + schema, out)
    equal((got.returncode, out["exit_code"], "error" in out), (code, code, code == 1))
    if "error" in out:
        check(out["error"]["message"] in got.stderr.decode(), got)
    return out.get("result")


@case
def each_subcommand_prints_one_object(f):
    house = House(f, "work").wait_for_agent("work")
    house.add("dev", authorized=False)
    house.add("off", state="Halted")
    key = (KEY + "\n").encode()
    fingerprint = ask(house, "key", "authorize", "dev", "--level", "monitor", stdin=key)["fingerprint"]
    equal(ask(house, "key", "connect", "dev", stdin=key), {"qube": "dev", "fingerprint": fingerprint})
    equal(ask(house, "key", "authorize", "dev", "-l", "full", stdin=key)["level"], "full")
    equal([k["qube"] for k in json.loads(run(house, "--json", "keys").stdout)], ["dev", "off", "work"])
    house.wait_for_agent("dev")
    check(ask(house, "key", "rotate", "dev")["fingerprint"] != fingerprint, "the same key")
    eventually(lambda: ask(house, "status", "status")["qubes"][0]["connected"], "dev is connected")
    equal(ask(house, "status", "status")["qubes"][0], {"qube": "dev", "connected": True, "running": 0, "waiting": 0})
    results = os.path.join(house.machine.home("work"), ".qvm-remote", "queue", "results")
    with open(os.path.join(results, "20260101-000000-1-0000000a.exit"), "w", encoding="utf-8") as e:
        e.write("0")
    entries = {q["qube"]: q for q in ask(house, "queue", "queue")["qubes"]}
    equal((entries["work"]["results"], entries["off"]["runs"]), (1, False))
    equal(ask(house, "queue", "queue", "clean", "work")["qubes"][0]["removed"], 1)
    check(ask(house, "queue", "queue", "debug", "work")["qubes"][0]["lines"], "no lines")
    equal(house.run("work", "exit 3").returncode, 3)
    serial = [line for line in f.audit() if line["kind"] == "START"][-1]["n"]
    shown = ask(house, "audit-show", "audit", "show", str(serial))
    equal([(one["kind"], one.get("exit")) for one in shown["records"]], [("START", None), ("END", 3)])
    heads = os.path.join(f.path, "heads")
    with open(heads, "w", encoding="utf-8") as h:
        h.write("".join(f"qvm-remote audit head {one['n']} {one['h']}\n" for one in f.audit()[-1:]))
    last = ask(house, "audit-verify", "audit", "verify", "--heads", heads)
    check(last["lines"] > 3, last)
    ask(house, "done", "audit", "rotate")
    check(any("exit=3" in line for line in ask(house, "log", "log", "30")["lines"]), "no DONE")
    equal(ask(house, "migrate", "migrate")["qubes"], [])
    equal(ask(house, "jobs", "jobs")["jobs"], [])
    job = house.run("work", "--detach", "echo out; exit 4").stdout.decode().strip()
    equal(house.run("work", "job", "wait", job).returncode, 4)
    (row,) = ask(house, "jobs", "jobs", "list")["jobs"]
    equal((row["qube"], row["id"], row["state"], row["exit_code"], row["stdout"], row["tty"]),
          ("work", job, "exited", 4, {"bytes": 4}, False))
    equal(ask(house, "panic", "panic"), {"panic": True})
    equal(ask(house, "policy-check", "policy", "check", "work", "--", "true", code=126)["why"],
          "an operator in dom0 has stopped everything (panic)")
    equal(ask(house, "panic", "resume"), {"panic": False})
    said = ask(house, "policy-check", "policy", "check", "work", "--", "echo", "--json")
    equal((said["verdict"], said["runs"]), ("allow", "in bash"))
    equal(ask(house, "policy-lint", "policy", "lint")["warnings"], [])
    equal(ask(house, "qube", "disconnect", "dev")["qube"], "dev")
    equal(ask(house, "qube", "revoke", "off"), {"qube": "off"})
    equal(house.machine.violations(), "")


@case
def failures_have_a_name(f):
    house = House(f, "work").wait_for_agent("work")
    rules(f, "work nonsense\n")
    for schema, words, name in (
            ("key", ("authorize", "../x"), "usage"), ("qube", ("revoke", "nobody"), "key_missing"),
            ("key", ("rotate", "nobody"), "key_missing"), ("log", ("log", "x"), "usage"),
            ("status", ("status", "x"), "usage"), ("done", ("nonsense",), "usage"), ("done", (), "usage"),
            ("audit-show", ("audit", "show", "99999"), "no_record"), ("done", ("approvals", "deny", "1"), "daemon_refused"),
            ("done", ("jobs", "cancel", "work", "20260101-000000-1-0000000a"), "daemon_refused"),
            ("policy-lint", ("policy", "lint"), None)):
        got = run(house, "--json", *words)
        out = json.loads(got.stdout)
        validate("dom0-" + schema, out)
        equal((words, got.returncode, out.get("error", {}).get("name")), (words, 1, name))
    equal(json.loads(run(house, "policy", "lint", "--json").stdout)["result"]["errors"][0]["line"], 1)
    f.stop()
    for words in (("status",), ("approvals", "deny", "1"), ("audit", "rotate")):
        out = json.loads(run(house, *words, "--json").stdout)
        equal((words, out["error"]["name"]), (words, "unreachable"))


@case
def a_command_may_have_the_word_too(f):
    """--json at the end of a command belongs to the command."""
    house = House(f, "work").wait_for_agent("work")
    got = run(house, "policy", "check", "work", "--", "echo", "--json")
    equal((got.returncode, got.stdout.split(b"\n")[0]), (0, b"verdict: allow"))


@case
def an_output_that_is_full(f):
    house = House(f, "work")
    for words in (("--json", "status"), ("keys",), ("--json", "keys"), ("--help",), ("--version",)):
        with open("/dev/full", "wb") as full:
            got = subprocess.run([DAEMON, "--root", f.root, *words], env=house.f.plain_env(), stdout=full,
                                 stderr=subprocess.PIPE, timeout=HANG, check=False)
        equal((words, got.returncode), (words, 255))
        check(b"cannot write the output" in got.stderr, got)


if __name__ == "__main__":
    main()
