#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""From a fresh machine to the first command, as README tells it: the packages in a clean Debian with apt
alone, the unit under a systemd of its own, stand-ins for Qubes' programs, and a qube in a second root. Then
restarts and upgrades in the middle of jobs (outlive.py).

    install.py BUILD-DIRECTORY

The packages are those that `make deb` left in BUILD-DIRECTORY/dist/deb; the clean Debian is kept in
BUILD-DIRECTORY/package. Only root can boot a container, so another user fails.
"""

import contextlib
import glob
import os
import shutil
import sys
import tempfile
import time

import outlive
import root

BUILD = os.path.abspath(sys.argv[1])
CACHE = os.path.join(BUILD, "package")
UNIT = "qvm-remote-dom0"

# A call into the qube: its root, its user, nothing of dom0's environment.
INTO_QUBE = """#!/bin/sh
exec /usr/sbin/chroot --userspec=1000:1000 /srv/work /usr/bin/env -i -C /home/user HOME=/home/user USER=user LOGNAME=user \\
    LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin /bin/bash "$@"
"""
STANDIN = """#!/bin/sh
QVMREMOTE_STANDIN=/srv/machine exec /usr/lib/standin/{name} "$@"
"""


def say(text):
    print(f"{time.monotonic() - BEGIN:6.1f}  {text}", flush=True)


def check(ok, what):
    if not ok:
        raise AssertionError(what)


def package(name):
    return root.package(BUILD, name)


def prepare(scratch):
    """dom0 with a qube `work` in it, both installed and nothing set up."""
    base = root.clean(CACHE)
    say("a clean system is there")
    dom0 = base.copy(os.path.join(scratch, "dom0"))
    dom0.install(package("qvm-remote-dom0"))
    qube = base.copy(os.path.join(scratch, "work"))
    qube.install(package("qvm-remote"))
    for place in (dom0, qube):
        for deb in glob.glob(place.file("var/cache/apt/archives/*.deb")):
            shutil.copy(deb, base.file("var/cache/apt/archives"))
    say("both packages are installed")
    qube.run("useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", "user")
    os.rename(qube.path, dom0.file("srv/work"))
    dom0.write("/etc/fstab", "".join(f"/{name} /srv/work/{name} none rbind 0 0\n" for name in ("proc", "dev")))
    dom0.write("/usr/local/bin/into-work", INTO_QUBE, 0o755)
    for name in ("qvm-run", "qrexec-client", "qvm-check"):
        os.makedirs(dom0.file("usr/lib/standin"), exist_ok=True)
        shutil.copy(os.path.join(BUILD, "tests/standin", name), dom0.file("usr/lib/standin", name))
        dom0.write("/usr/bin/" + name, STANDIN.format(name=name), 0o755)
    dom0.write("/srv/machine/qubes/work/state", "Running\n")
    dom0.write("/srv/machine/qubes/work/shell", "/usr/local/bin/into-work\n")
    os.mkdir(dom0.file("srv/machine/qubes/work/home"))
    dom0.write("/etc/where", "dom0\n")
    dom0.run("groupadd", "--system", "qubes")
    newest = package("qvm-remote-dom0")
    for n in (1, 2, 3):
        newest = root.newer(newest, scratch, f"newer-{n}")
        dom0.put(newest)
    return dom0


class Machine(root.Container):
    def in_dom0(self, line, typed=None, wanted=0):
        """What a person types in dom0 as root, and then answers; both streams."""
        code, said = self.run("/bin/bash", "-c", line, typed=typed, check=False)
        say(f"dom0# {line}   [{code}]\n{said}".rstrip())
        check(code == wanted, f"exit code {code}, not {wanted}")
        return said

    def in_work(self, line, wanted=0):
        code, said = self.run("/usr/local/bin/into-work", "-c", line, check=False)
        say(f"work$ {line}   [{code}]\n{said}".rstrip())
        check(code == wanted, f"exit code {code}, not {wanted}")
        return said

    def state(self):
        return tuple(self.run("systemctl", what, UNIT, check=False)[1].strip() for what in ("is-active", "is-enabled"))

    def main_pid(self):
        return self.run("systemctl", "show", "-p", "MainPID", "--value", UNIT).strip()


def first_command(machine):
    check(machine.state() == ("inactive", "disabled"), f"installed, and nothing runs: {machine.state()}")
    machine.in_dom0("systemctl start qvm-remote-dom0")
    begin = time.monotonic()
    fingerprint = machine.in_work("qvm-remote key gen").strip()
    said = machine.in_dom0("qvm-remote-dom0 authorize work --fetch", typed="yes\n")
    check(said.count(fingerprint) == 2 and "It IS dom0" in said, "the fingerprint and the warning are shown")
    said = machine.in_work("qvm-remote 'id -un; cat /etc/where'")
    took = time.monotonic() - begin
    check(said == "root\ndom0\n", said)
    check(took < 60, f"the first command took {took:.1f} s")
    say(f"three commands typed, {took:.1f} s")


def in_order(machine):
    said = machine.in_dom0("qvm-remote-dom0 status")
    check("containment: a cgroup for each command" in said and "qube work: not connected" not in said, said)
    pid = machine.main_pid()
    machine.in_dom0("systemctl reload qvm-remote-dom0")
    check(machine.in_work("qvm-remote cat /etc/where") == "dom0\n" and machine.main_pid() == pid, "reloaded, not restarted")
    machine.in_work("qvm-remote 'exit 7'", wanted=7)
    modes = machine.run("stat", "-c", "%a %U %n", "/etc/qubes/remote.d", "/etc/qubes/remote.d/work.key",
                        "/etc/qubes/remote-policy.d/50-work.policy", "/var/log/qvm-remote", "/var/log/qubes/qvm-remote.log",
                        "/var/lib/qvm-remote", "/run/qvm-remote", "/run/qvm-remote/control.sock")
    check([line.split()[:2] for line in modes.splitlines()] ==
          [[mode, "root"] for mode in ("700", "600", "644", "700", "600", "700", "755", "660")], modes)


def boots(machine):
    machine.reboot()
    check(machine.state() == ("inactive", "disabled"), f"off after a boot: {machine.state()}")
    for typed in ("", "y\n", "no\n", "Yes\n"):
        said = machine.in_dom0("qvm-remote-dom0 enable", typed=typed, wanted=1)
        check("nothing was changed" in said, said)
    check(machine.state() == ("inactive", "disabled"), f"off without a yes: {machine.state()}")
    said = machine.in_dom0("qvm-remote-dom0 enable", typed="yes\n")
    check("IS dom0" in said, "the risk is named")
    check(machine.state() == ("active", "enabled"), f"on: {machine.state()}")
    machine.reboot()
    check(machine.state() == ("active", "enabled"), f"on after a boot: {machine.state()}")
    check(machine.in_work("qvm-remote cat /etc/where") == "dom0\n", "and it serves")


def upgrade(machine):
    """By a command of the very daemon that is replaced."""
    pid = machine.main_pid()
    said = machine.in_work("qvm-remote 'apt-get -q install -y /srv/newer-3.deb && echo done'")
    check(said.endswith("done\n"), "the upgrade ends")
    end = time.monotonic() + root.HANG
    while machine.main_pid() in (pid, "0") or machine.state()[0] != "active":
        check(time.monotonic() < end, "the new daemon never came")
        time.sleep(0.2)
    check(machine.in_work("qvm-remote cat /etc/where") == "dom0\n", "the new one serves by the same key")
    check(machine.run("dpkg", "--audit") == "", "dpkg has all in order")


def removed(machine):
    machine.in_dom0("qvm-remote-dom0 disable")
    check(machine.state() == ("inactive", "disabled"), f"off: {machine.state()}")
    machine.in_dom0("qvm-remote-dom0 enable", typed="yes\n")
    machine.in_dom0("apt-get -q remove -y qvm-remote-dom0")
    end = time.monotonic() + root.HANG
    while machine.run("pgrep", "-x", "qvm-remote-dom0", check=False)[0] == 0:
        check(time.monotonic() < end, "removed, and it still runs")
        time.sleep(0.2)
    left = machine.run("find", "/etc/systemd/system", "-name", "qvm-remote*")
    check(left == "", f"nothing of it is on at the next boot: {left}")


def main():
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=CACHE) as scratch:
        with contextlib.closing(Machine(prepare(scratch))) as machine:
            machine.boot()
            say("booted")
            for case in (first_command, in_order, boots, *outlive.CASES, upgrade, removed):
                try:
                    case(machine)
                except Exception:
                    with contextlib.suppress(Exception):
                        say("the unit's journal:\n" + machine.run("journalctl", "--no-pager", "-n", "50", "-u", UNIT))
                    raise
                say(f"ok {case.__name__}")


BEGIN = time.monotonic()
if os.geteuid() != 0:
    sys.exit("install.py: containers are for root")
os.makedirs(CACHE, exist_ok=True)
main()
