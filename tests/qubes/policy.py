#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What we put into qrexec's directories is of its grammar: one bad line there denies every call on the
machine. policy.py POLICY RPC-CONFIG. The commented examples are held to it too; and what is shipped
lets nobody through.
"""

import os
import re
import sys

NAME = r"[A-Za-z][A-Za-z0-9_-]{0,30}"
SOURCE = re.compile(rf"\*|{NAME}|uuid:[0-9a-f-]{{36}}|@anyvm|@adminvm|@tag:{NAME}|@type:{NAME}"
                    rf"|@dispvm:({NAME}|@tag:{NAME})")
TARGET = re.compile(SOURCE.pattern + "|@default|@dispvm")
TO = re.compile(rf"{NAME}|@adminvm|@dispvm(:({NAME}|@tag:{NAME}))?")
YES_NO = re.compile("yes|no")
PARAMETERS = {"allow": {"target": TO, "user": re.compile("[a-z_][a-z0-9_-]*"), "notify": YES_NO, "autostart": YES_NO},
              "deny": {"notify": YES_NO}}
PARAMETERS["ask"] = dict(PARAMETERS["allow"], default_target=TO)
KEYS = {"skip-service-descriptor": "true|false", "exit-on-client-eof": "true|false",
        "exit-on-service-eof": "true|false", "wait-for-session": "true|false|0|1", "force-user": "'[^']+'"}


def parse(line):
    """(service, argument, source, target, action) of a good line; a bad one is a ValueError."""
    words = line.split()
    if len(words) < 5:
        raise ValueError("less than five words")
    service, argument, source, target, action = words[:5]
    if not re.fullmatch(r"\*|[A-Za-z0-9_.-]+", service) or not re.fullmatch(r"\*|\+[A-Za-z0-9_.+-]*", argument):
        raise ValueError("service or argument")
    if service == "*" and argument != "*":
        raise ValueError("every service, and not every argument")
    if not SOURCE.fullmatch(source) or not TARGET.fullmatch(target):
        raise ValueError("source or target")
    if action not in PARAMETERS:
        raise ValueError("action")
    seen = {}
    for word in words[5:]:
        key, equals, value = word.partition("=")
        if not equals or key in seen or key not in PARAMETERS[action] or \
                not PARAMETERS[action][key].fullmatch(value):
            raise ValueError(f"parameter {word}")
        seen[key] = value
    if action == "allow" and target == "@default" and "target" not in seen:
        raise ValueError("a default without a target")
    return service, argument, source, target, action


def bad(line):
    try:
        parse(line)
        return False
    except ValueError:
        return True


# The checker itself: what it must not let pass.
for wrong in ("qvmremote.Exec * work @adminvm", "qvmremote.Exec * work @adminvm permit",
              "qvmremote.Exec monitor work @adminvm allow", "* +x work @adminvm allow",
              "qvmremote.Exec * @default @adminvm allow", "qvmremote.Exec * work dom0 allow notify",
              "qvmremote.Exec * work dom0 allow default_target=dom0", "qvmremote.Exec * work @default allow",
              "qvmremote.Exec * work dom0 deny notify=perhaps", "qvmremote.Exec * 1work dom0 deny"):
    if not bad(wrong):
        sys.exit(f"the check lets pass: {wrong}")

policy, rpc_config = sys.argv[1:]
if not re.fullmatch(r"[0-9a-z_-][0-9a-z_.-]*\.policy", os.path.basename(policy)):
    sys.exit(f"{policy}: qrexec denies everything over such a name")
rules, examples = [], []
with open(policy, encoding="ascii") as f:
    for number, line in enumerate(f, 1):
        text = line.strip()
        is_example = text.startswith("#qvmremote.")
        if not text or (text.startswith("#") and not is_example):
            continue
        try:
            (examples if is_example else rules).append(parse(text.lstrip("#")))
        except ValueError as e:
            sys.exit(f"{policy}:{number}: {e}")
if [r for r in rules if r[0] != "qvmremote.Exec" or r[4] != "deny"]:
    sys.exit(f"{policy}: a line that is no deny of ours")
# @anyvm is every qube and no dom0; it takes @default in.
for target in ("@adminvm", "@anyvm"):
    if not [r for r in rules if r[1:4] == ("*", "@anyvm", target)]:
        sys.exit(f"{policy}: calls to {target} are left to later files")
if {e[4] for e in examples} != {"ask", "allow"} or not [e for e in examples if e[2].startswith("@tag:")]:
    sys.exit(f"{policy}: an example of ask, of allow, or of a tag is missing")

found = {}
with open(rpc_config, encoding="ascii") as f:
    for number, line in enumerate(f, 1):
        if line.startswith("#") or not line.strip():
            continue
        match = re.fullmatch(r"([a-z-]+)[ \t]*=[ \t]*(\S+)\n", line)
        if not match or match[1] not in KEYS or not re.fullmatch(KEYS[match[1]], match[2]):
            sys.exit(f"{rpc_config}:{number}: not of its grammar")
        found[match[1]] = match[2]
if found.get("skip-service-descriptor") == "true":
    sys.exit(f"{rpc_config}: without the descriptor nobody has a name")
if found.get("exit-on-client-eof") == "true":
    sys.exit(f"{rpc_config}: a caller's half-close would cut the output")
