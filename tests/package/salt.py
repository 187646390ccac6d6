#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The Salt formula, rendered as Salt renders it (Jinja2, then YAML) and held against what the states may
say; what it writes and runs is given to the real programs.

    salt.py BUILD-DIRECTORY

Salt itself is in no archive of Debian 12. This runs on Debian's Python, which has Debian's Jinja2 and
PyYAML.
"""
import os
import re
import stat
import subprocess
import sys
import tempfile

import jinja2
import yaml

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = os.path.abspath(sys.argv[1])
FORMULA = os.path.join(SOURCE, "packaging/salt")
KEY = "0123456789abcdef" * 4

# The functions of Salt, and of Qubes' modules for it, that the formula uses, with their arguments.
COMMON = {"name", "require", "onchanges", "onlyif", "unless"}
FUNCTIONS = {
    "test.nop": set(),
    "pkg.installed": set(),
    "file.managed": {"user", "group", "mode", "contents", "contents_pillar", "makedirs", "dir_mode", "show_changes"},
    "cmd.run": {"shell", "creates"},
    "service.running": {"enable"},
    "service.dead": {"enable"},
    "qvm.present": {"template", "label"},
    "qvm.prefs": None,  # any property
    "qvm.tags": {"add"},
    "qvm.start": set(),
}


def check(holds, what):
    if not holds:
        sys.exit(f"FAILED: {what}")


def equal(got, want, what):
    check(got == want, f"{what}: got {got!r} and not {want!r}")


def run(*words, **kw):
    return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, **kw)


class Refused(Exception):
    pass


class Tree(yaml.SafeLoader):
    """Salt refuses an ID that is there twice; PyYAML takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        check(len(keys) == len(set(keys)), f"twice: {keys}")
        return super().construct_mapping(node, deep)


def render(name, pillar):
    """The states of a file as {id: [(function, {argument: value})]}, and what it includes."""
    def get(path, default=""):
        value = pillar
        for part in path.split(":"):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    def refuse(text):
        raise Refused(text)

    def regex_match(text, pattern):
        found = re.match(pattern, text)
        return found.groups() if found else None

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(FORMULA), extensions=["jinja2.ext.do"],
                                     undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_match"] = regex_match
    environment.globals.update({"salt": {"pillar.get": get}, "raise": refuse})
    text = environment.get_template(name).render()
    tree = yaml.load(text, Tree) or {}
    included = tree.pop("include", [])
    states = {}
    for identifier, body in tree.items():
        functions = {body: []} if isinstance(body, str) else body
        states[identifier] = []
        for function, arguments in functions.items():
            check(function in FUNCTIONS, f"{name}: no such state: {function}")
            given = {}
            for argument in arguments:
                check(len(argument) == 1, f"{identifier}: one argument an entry: {argument}")
                given.update(argument)
            known = FUNCTIONS[function]
            check(known is None or set(given) <= known | COMMON, f"{identifier}: arguments {set(given)}")
            states[identifier].append((function, given))
    return states, included


def everything(pillar):
    """All of dom0's states, as init.sls has them, after their requisites were found."""
    states, names = {}, ["qvm-remote"]
    seen = set()
    while names:
        name = names.pop(0)
        if name in seen:
            continue
        seen.add(name)
        path = name.replace(".", "/")
        path += "/init.sls" if os.path.isdir(os.path.join(FORMULA, path)) else ".sls"
        more, included = render(path, pillar)
        check(not set(more) & set(states), f"{name}: an ID is there twice")
        states.update(more)
        names += included
    there = {(function.split(".")[0], identifier) for identifier, body in states.items() for function, _ in body}
    for identifier, body in states.items():
        for _, given in body:
            for requisite in given.get("require", []) + given.get("onchanges", []):
                check(set(requisite.items()) <= there, f"{identifier}: no such state: {requisite}")
    return states


def one(states, identifier):
    [(function, given)] = states[identifier]
    return function, given


def pillar_of_example():
    with open(FORMULA + "/pillar/qvm-remote.sls", encoding="utf-8") as f:
        return yaml.load(f, Tree)


def pillar(**qubes):
    return {"qvm-remote": {"qubes": qubes}}


def example():
    states = everything(pillar_of_example())
    equal(one(states, "qvm-remote-qube-dev-remote"),
          ("qvm.present", {"name": "dev-remote", "template": "fedora-41-xfce", "label": "red"}), "the qube")
    equal(one(states, "qvm-remote-prefs-dev-remote")[1]["maxmem"], 1024, "its prefs")
    equal(one(states, "qvm-remote-service"), ("service.dead", {
        "enable": False, "name": "qvm-remote-dom0",
        "require": [{"pkg": "qvm-remote-dom0-package"}, {"file": "qvm-remote-policy"}]}), "the service is off")
    equal(one(states, "qvm-remote-config")[1]["mode"], "0600", "settings are root's")
    equal(one(render("qvm-remote/client.sls", {})[0], "qvm-remote-package"), ("pkg.installed", {"name": "qvm-remote"}),
          "the client, without any pillar")
    for top in ("qvm-remote.top", "pillar/qvm-remote.top"):
        with open(os.path.join(FORMULA, top), encoding="utf-8") as f:
            for names in yaml.load(f, Tree)["user"].values():
                for name in names:
                    path = (os.path.dirname(top) + "/" if "/" in top else "") + name.replace(".", "/")
                    check(any(os.path.exists(os.path.join(FORMULA, path + end)) for end in (".sls", "/init.sls")),
                          f"{top}: {name}")


def little_said():
    states = everything({})
    check("qvm-remote-service" not in states, "the service is as it is")
    check("qvm-remote-config" not in states, "and remote.conf too")
    check(not [i for i in states if "-key-" in i or "-qube-" in i], "no qube by itself")
    equal(one(everything({"qvm-remote": {"enabled": True}}), "qvm-remote-service")[0], "service.running", "on when told")


def refusals():
    for name in ("a b", "$(reboot)", "../x", "x;reboot", "dom0", "none", "-x", "x" * 32, "sys-net-dm", "x\ny", "x\n"):
        refused(pillar(**{name: {"level": "deny"}}), "not the name of a qube")
    refused(pillar(work={}), "level is one of")
    refused(pillar(work={"level": "root"}), "level is one of")
    refused({"qvm-remote": {"config": {"PATH": "x"}}}, "not a setting")
    try:
        render("qvm-remote/key.sls", {})
        check(False, "a qube without a key in its pillar")
    except Refused:
        pass


def refused(data, why):
    try:
        everything(data)
    except Refused as refusal:
        check(why in str(refusal), f"{data}: {refusal}")
        return
    check(False, f"{data} is taken")


def keys_in_the_pillar():
    states = everything(pillar(work={"level": "manage", "key": KEY}))
    function, given = one(states, "qvm-remote-key-work")
    equal((function, given["name"], given["mode"], given["contents_pillar"], given["show_changes"]),
          ("file.managed", "/etc/qubes/remote.d/work.key", "0600", "qvm-remote:qubes:work:key", False), "the key in dom0")
    check("qvm-remote-start-work" not in states, "nothing is started for it")
    check(KEY not in repr(states), "no key is in a state, which Salt shows and caches")
    states, _ = render("qvm-remote/key.sls", {"qvm-remote": {"key": KEY}})
    equal(one(states, "qvm-remote-auth-key")[1]["mode"], "0600", "the key in the qube")
    check(KEY not in repr(states), "nor is it there")


class House:
    """The real programs: dom0 below a directory, a qube with a home, and a qvm-run that runs things there."""

    def __init__(self, top):
        self.root, self.bin, self.home = (os.path.join(top, n) for n in ("dom0", "bin", "home"))
        for directory in (self.root, self.bin, self.home):
            os.mkdir(directory, 0o700)
        self.program("qvm-remote-dom0", f'exec {BUILD}/tools/qvm-remote-dom0/qvm-remote-dom0 --root {self.root} "$@"')
        self.program("qvm-run", f'[ "$1 $2 $3 $4" = "--no-gui --no-autostart --pass-io work" ] || exit 9\n'
                                f'export HOME={self.home} PATH={BUILD}/tools/qvm-remote:{BUILD}/tools/qvm-remote-agent:/usr/bin:/bin\necho "$5; exit" | bash')

    def program(self, name, text):
        path = os.path.join(self.bin, name)
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/bash\n{text}\n")
        os.chmod(path, 0o755)

    def run(self, command):
        return run("/bin/bash", "-c", command, env={"PATH": self.bin + ":/usr/bin:/bin", "HOME": self.root})

    def apply(self, states):
        """What file.managed and cmd.run would do to a dom0 below a directory, in order; returns what was run."""
        done = []
        for identifier in states:
            function, given = one(states, identifier)
            if function == "file.managed":
                path = self.root + given["name"]
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                with open(path, "w", encoding="utf-8") as f:
                    f.write("\n".join(given["contents"]) + "\n")
                os.chmod(path, int(given["mode"], 8))
            elif function == "cmd.run":
                if "creates" in given and os.path.exists(self.root + given["creates"]):
                    continue
                if "onlyif" in given and self.run(given["onlyif"].replace("/etc/", self.root + "/etc/")).returncode != 0:
                    continue
                got = self.run(given["name"])
                equal(got.returncode, 0, f"{identifier}: {got.stdout}")
                check(KEY not in got.stdout and not re.search(r"\b[0-9a-f]{64}\b", got.stdout), f"no key is shown: {got.stdout}")
                done.append(identifier)
        return done

    def decides(self, command):
        return self.run(f"qvm-remote-dom0 policy check work -- {command}").returncode


def real(top):
    house = House(top)
    data = pillar(work={"level": "monitor", "rules": ["exec:qvm-start {qube:dev-*} ask ttl=10m"]})
    data["qvm-remote"]["config"] = {"QVM_REMOTE_VMS": "work dev", "QVM_REMOTE_MAX_MEMORY": "2G"}
    house.apply(everything(data))
    key = house.root + "/etc/qubes/remote.d/work.key"
    equal(stat.S_IMODE(os.stat(key).st_mode), 0o600, "the key in dom0")
    with open(key, encoding="ascii") as theirs, open(house.home + "/.qvm-remote/auth.key", encoding="ascii") as own:
        before = theirs.read().strip()
        equal(before, own.read().strip(), "one key at both ends")
    equal([house.decides(c) for c in ("qvm-ls", "qvm-start dev-a", "qvm-start work", "reboot")], [0, 3, 126, 126],
          "policy is what the pillar says")
    check("qvm-remote-key-work" not in house.apply(everything(data)), "a second run makes no second key")

    # The pillar changes, and what follows from it.
    data["qvm-remote"]["qubes"]["work"] = {"level": "full"}
    house.apply(everything(data))
    equal(house.decides("reboot"), 0, "a level that was raised")
    data["qvm-remote"]["qubes"]["work"] = {"level": "deny"}
    house.apply(everything(data))
    equal([house.decides(c) for c in ("qvm-ls", "reboot")], [126, 126], "a level that was taken away")
    data["qvm-remote"]["qubes"]["work"] = {"absent": True}
    check("qvm-remote-revoked-work" in house.apply(everything(data)), "a qube that is out")
    check(not os.path.exists(key), "has no key")
    equal(house.decides("qvm-ls"), 126, "and no rule")


def main():
    example()
    little_said()
    refusals()
    keys_in_the_pillar()
    with tempfile.TemporaryDirectory(prefix="qvm-remote-salt-", dir="/tmp") as top:
        real(top)
    print("ok")


main()
