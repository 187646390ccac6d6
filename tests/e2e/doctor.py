#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""`doctor` at both ends. Each fault is injected alone, and one doctor names it with the row that stands here;
when nothing is wrong, neither names anything.
Usage: doctor.py BUILD-DIRECTORY --transport mock|qvm-run|qrexec [CASE...]
"""

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time

import fixture
from fixture import BUILD, CLIENT, DAEMON, HANG, Fixture, case, check, equal, eventually
from doctor_faults import FAULTS, VERSION
from house import HOUSES
from schema import validate

at = sys.argv.index("--transport")
Fixture.transport = sys.argv[at + 1]
del sys.argv[at : at + 2]

DOCTORS = ("dom0", "qube")
CGROUP = None  # a cgroup that this test may divide


class Doctors:
    """A house that works, and the doctor at both ends."""

    def __init__(self, f):
        self.f = f
        if CGROUP:  # the daemon gets one of its own, as its unit has
            f.under = ["sh", "-c", 'mkdir "$0/d$$" && echo $$ >"$0/d$$/cgroup.procs" && exec "$@"', CGROUP]
        more = dict(events=True) if f.transport == "qvm-run" else {}
        self.house = HOUSES[f.transport](f, "work", **more).wait_for_agent("work")
        self.home = os.path.join(self.house.machine.home("work"), ".qvm-remote")
        self.root = f.root
        self.client, self.client_env, self.client_setup = CLIENT, {}, None
        self.plugins, self.dom0_env = None, {}

    def path(self, *names):
        return os.path.join(self.root, *names)

    def qube(self, *words, check_json=True):
        """The findings of qvm-remote doctor."""
        env = self.house.env("work", **self.client_env)
        words = ["doctor", *words, "--json"]
        got = subprocess.run([self.client, *words], env={k: v for k, v in env.items() if v is not None},
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, preexec_fn=self.client_setup)
        return self.findings(got)

    def dom0_words(self):
        return ["--root", self.root, "--transport", self.f.transport, "--plugin-dir",
                self.plugins or os.path.join(BUILD, "plugins", self.f.transport)]

    def dom0(self, *words):
        """The findings of qvm-remote-dom0 doctor."""
        env = self.f.plain_env(QVM_REMOTE_MOCK_SOCKET=None, **{**self.house.how, **self.dom0_env})
        env.pop("QVM_REMOTE_TRANSPORT", None)
        got = subprocess.run([DAEMON, *self.dom0_words(), "doctor", *words, "--json"], env=env,
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG)
        return self.findings(got)

    @staticmethod
    def findings(got):
        check(got.returncode in (0, 3), got)
        out = json.loads(got.stdout)
        validate("doctor", out)
        found = out["result"]["findings"]
        states = [one["state"] for one in found]
        worst = max(states, key=["ok", "warning", "broken"].index)
        equal((out["result"]["state"], out["exit_code"], got.returncode), (worst, *[3 if worst == "broken" else 0] * 2))
        return found

    def wrong(self, who):
        """What that doctor says is wrong, one text each."""
        return [text_of(one) for one in getattr(self, who)() if one["state"] != "ok" and (CGROUP or one["check"] != "cgroups")]

    def wait_until_well(self):
        last = []

        def well():
            last[:] = [one for who in DOCTORS for one in self.wrong(who)]
            return not last
        end = time.monotonic() + HANG
        while not well():
            check(time.monotonic() < end, f"something is wrong: {last}")
            time.sleep(0.1)

    def restart(self):
        self.house.restart()
        self.house.wait_for_agent("work")


def text_of(one):
    place = (one["qube"] + ": " if "qube" in one else "") + one["check"]
    return f"{one['state']} {place}: {one['cause']}" + (f"; {one['remedy']}" if one["remedy"] else "")


def pattern(d, said):
    text = said.format(home=d.home, root=d.root, path=d.f.path, machine=d.house.machine.path, transport=d.f.transport,
                       version=VERSION)
    return re.escape(text).replace(r"\.\.\.", ".*")


@case
def each_fault_is_named_and_nothing_else(f):
    d = Doctors(f)
    d.wait_until_well()
    failures, tried = [], 0
    for name, who, said, over, inject in FAULTS:
        if who not in DOCTORS or f.transport not in over or (name == "no_cgroup_was_delegated" and not CGROUP):
            continue
        if name == "full_disk" and subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"],
                                                  stderr=subprocess.DEVNULL, check=False).returncode != 0:
            continue
        tried += 1
        with inject(d):
            end = time.monotonic() + 20  # a daemon may notice a change only with its next call
            while True:
                got = d.wrong(who)
                if any(re.fullmatch(pattern(d, said), one) for one in got):
                    break
                if time.monotonic() > end:
                    failures.append(f"{name}: {who} says {got}, and not {said}")
                    break
                time.sleep(0.2)
        d.wait_until_well()
    print(f"{tried - len(failures)} of {tried} faults named over {f.transport}", flush=True)
    check(not failures, "\n".join(failures))


@case
def fixes_take_rights_away_and_make_directories(f):
    d = Doctors(f)
    d.wait_until_well()
    equal(d.house.run("work", "true").returncode, 0)
    os.chmod(d.home, 0o755)
    os.chmod(d.home + "/auth.key", 0o444)
    os.chmod(d.home + "/audit.log", 0o644)
    os.chmod(d.path("etc/qubes/remote.d"), 0o755)
    os.chmod(d.path("etc/qubes/remote.d/work.key"), 0o644)
    os.chmod(d.path("var/log/qvm-remote"), 0o711)
    expected = {"qube": {"directory", "key", "records"}, "dom0": {"keys", "key", "audit"}}
    if f.transport == "qvm-run":
        os.chmod(d.home + "/queue/pending", 0o755)
        expected["qube"].add("queue")
    for who in DOCTORS:
        equal({one["check"] for one in getattr(d, who)() if one["fixable"]}, expected[who])
    for who in DOCTORS:
        equal({one["check"] for one in getattr(d, who)("--fix") if one["fixed"]}, expected[who])
    for path, mode in ((d.home, 0o700), (d.home + "/auth.key", 0o400), (d.home + "/audit.log", 0o600),
                       (d.path("etc/qubes/remote.d"), 0o700), (d.path("etc/qubes/remote.d/work.key"), 0o600),
                       (d.path("var/log/qvm-remote"), 0o700)):
        equal((path, stat.S_IMODE(os.stat(path).st_mode)), (path, mode))
    d.wait_until_well()
    if f.transport == "qvm-run":
        equal(stat.S_IMODE(os.stat(d.home + "/queue/pending").st_mode), 0o700)
        f.stop()
        eventually(lambda: not d.house.has_agent("work"), "the agent's end")
        shutil.rmtree(d.home + "/queue")
        equal([one["check"] for one in d.qube("--fix") if one["fixed"]], ["queue"])
        equal(sorted(os.listdir(d.home + "/queue")), ["pending", "results", "running"])
        d.house.start()
        d.wait_until_well()
    # What others could have written to is theirs, perhaps: dom0's doctor leaves it.
    key = d.path("etc/qubes/remote.d/work.key")
    os.chmod(key, 0o666)
    found = [one for one in d.dom0("--fix") if one["check"] == "key"]
    equal([(one["state"], one["fixable"], one["fixed"]) for one in found], [("broken", False, False)])
    equal(stat.S_IMODE(os.stat(key).st_mode), 0o666)
    os.chmod(key, 0o600)
    if os.geteuid() != 0:
        # A file of somebody else is not touched.
        os.unlink(d.home + "/audit.log")
        os.symlink("/etc/passwd", d.home + "/audit.log")
        d.qube("--fix")
        equal(stat.S_IMODE(os.stat("/etc/passwd").st_mode), 0o644)


@case
def rows_say_what_the_json_says(f):
    d = Doctors(f)
    os.chmod(d.home + "/auth.key", 0o640)
    env = {k: v for k, v in d.house.env("work").items() if v is not None}
    got = subprocess.run([CLIENT, "doctor"], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=HANG, check=False)
    equal(got.returncode, 3)
    rows = [re.split(r"  +| ", row, maxsplit=2) for row in got.stdout.decode().splitlines()]
    found = d.qube()
    equal([row[:2] for row in rows], [[one["state"], one["check"]] for one in found])
    text = next(row[2].strip() for row in rows if row[1] == "key")
    key = next(one for one in found if one["check"] == "key")
    equal(text, f"{key['cause']}; {key['remedy']} (doctor --fix does it)")
    for program, words in ((CLIENT, ("doctor", "--nonsense")), (DAEMON, ("--root", f.root, "doctor", "x"))):
        got = f.run(*words, program=program, env={"HOME": f.home})
        check(got.returncode == 1 and b"usage: " in got.stderr, got)


@case
def without_anything_set_up(f):
    found = {one["check"]: one for one in Doctors.findings(f.run("doctor", "--json", env=dict(QVM_REMOTE_MOCK_SOCKET=None)))}
    equal((found["dom0"]["state"], found["key"]["state"]), ("ok", "ok"))
    found = {one["check"]: one for one in Doctors.findings(
        f.run("doctor", "--json", env=dict(QVM_REMOTE_TRANSPORT=None, QVM_REMOTE_PLUGIN_DIR=None, QVM_REMOTE_MOCK_SOCKET=None)))}
    equal([found[name]["state"] for name in ("directory", "key", "agent")], ["broken", "broken", "broken"])
    check("dom0" not in found, found)


def mine(base):
    """Gives a cgroup to the user of the tests."""
    os.chown(base, 65534, 65534)
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(os.path.join(base, name), 65534, 65534)


def make_cgroup():
    """A cgroup for the daemons of this test, as systemd delegates one to its unit; nothing if that cannot be."""
    if os.geteuid() != 0:
        return None
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as f:
            point = next(line.split()[4] for line in f if " - cgroup2 " in line and line.split()[3] == "/")
        base = os.path.join(point, f"qvm-doctor-{os.getpid()}")
        for path in (base, os.path.join(base, "tests")):
            os.mkdir(path)
            mine(path)
        with open(os.path.join(base, "tests", "cgroup.procs"), "w", encoding="ascii") as f:
            f.write(str(os.getpid()))
        return base
    except (OSError, StopIteration) as why:
        print(f"no cgroup for the daemons: {why}", flush=True)
        return None


def remove_cgroup(base):
    for directory, _, _ in sorted(os.walk(base, topdown=False), reverse=False):
        with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.kill"), "w", encoding="ascii") as f:
            f.write("1")
    end = time.monotonic() + 30
    while os.path.isdir(base) and time.monotonic() < end:
        for directory, _, _ in os.walk(base, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        time.sleep(0.05)


if os.geteuid() == 0 and (child := os.fork()) != 0:
    # The child becomes an ordinary user, who cannot leave the cgroup; this process removes it.
    status = os.waitpid(child, 0)[1]
    for point in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        remove_cgroup(os.path.join(point, f"qvm-doctor-{child}"))
    sys.exit(os.waitstatus_to_exitcode(status))
CGROUP = make_cgroup()
fixture.main()
