#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of the Python programs 1.x, and of the bash programs 0.x before them, become a working installation
of ours. Usage: migration.py BUILD-DIRECTORY [CASE...]
"""

import os
import time

from fixture import KEY, case, check, equal, main
from house import House

# So old that a limit could remove it; without a setting the agent must keep it.
THEN = time.localtime(time.time() - 400 * 86400)
DAY = time.strftime("%Y-%m-%d", THEN)
STAMP = DAY + "T10:11:12"
ID = time.strftime("%Y%m%d", THEN) + "-101112-4711-0a1b2c3d"


def put(text, *names, mode=0o644):
    path = os.path.join(*names)
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(path, "w") as f:
        f.write(text)
    os.chmod(path, mode)


def old_qube(home, name, key=KEY):
    """Makes a user's directory like the old clients: modes follow the umask."""
    base = os.path.join(home, name)
    os.mkdir(base, 0o755)
    put(key, base, "auth.key", mode=0o600)
    for part in ("pending", "running", "results"):
        os.makedirs(os.path.join(base, "queue", part), 0o755)
    for part, text in (("out", "total 0\n"), ("err", ""), ("exit", "0"), ("command", "ls -l\n"),
                       ("meta", f"id={ID}\nstarted={STAMP}\nduration_ms=7\nexit_code=0\n")):
        put(text, base, "history", DAY, ID, part)
    put(f"[{STAMP}] SUBMIT id={ID} size=6B cmd=ls -l \n"
        f"[{STAMP}] id={ID} exit=0 duration=7ms cmd=ls -l \n"
        f"[{STAMP}] DONE id={ID} exit=0\n", base, "audit.log", mode=0o600)


def old_dom0(root, conf, key=KEY):
    put(conf, root, "etc/qubes/remote.conf")
    put(key + "\n", root, "etc/qubes/remote.d/work.key", mode=0o600)
    os.chmod(os.path.join(root, "etc/qubes/remote.d"), 0o700)
    put(f"[{STAMP}] INFO listening\n", root, "var/log/qubes/qvm-remote.log")


def migrated(f, name, conf, agent=True, key=KEY, **more):
    """Starts our programs with the old files, and does what an administrator must do."""
    house = House(f, **more)
    f.stop()
    old_qube(house.machine.add("work", agent=agent), name, key)
    old_dom0(f.root, conf, key)
    got = f.dom0("migrate")
    equal((got.returncode, got.stdout), (0, b"work: level full, as before: it IS dom0\n"))
    house.start()
    return house


def works(f, house, home):
    got = house.run("work", "echo $QVM_REMOTE_PEER; exit 7")
    equal((got.returncode, got.stdout, got.stderr), (7, b"work\n", b""))
    history = house.run("work", "history").stdout.decode().splitlines()
    check(len(history) == 2 and ID in history[0] and "exit=7" in history[1], history)
    shown = house.run("work", "history", "show", ID).stdout
    check(b"total 0" in shown and b"ls -l" in shown, shown)
    check(not os.path.exists(os.path.join(home, ".qubes-remote")), "the old directory is there")
    check(f.log().startswith(f"[{STAMP}] INFO listening\n"), f.log())
    equal(f.dom0("keys").stdout.split()[0], b"work")


@case
def a_python_installation_goes_on(f):
    house = migrated(f, ".qvm-remote", 'QVM_REMOTE_VMS="work gone"\nQVM_REMOTE_VM_USER=user\n')
    house.wait_for_agent("work")
    works(f, house, house.machine.home("work"))


@case
def a_bash_installation_goes_on_under_its_new_names(f):
    house = migrated(f, ".qubes-remote", "# written by 0.x\nQUBES_REMOTE_VMS = work\n", key=KEY.upper())
    house.wait_for_agent("work")
    works(f, house, house.machine.home("work"))
    check("QUBES_REMOTE_VMS is used; its name is QVM_REMOTE_VMS now" in f.log(), f.log())
    # A qube that is authorized later goes into a list with the new name, with the qubes of the old list.
    house.machine.add("dev")
    got = f.dom0("connect", "dev", stdin=(KEY + "\n").encode())
    equal(got.returncode, 0)
    with open(os.path.join(f.root, "etc/qubes/remote.conf")) as conf:
        text = conf.read()
    check("QVM_REMOTE_VMS=" in text and "work dev" in text, text)


@case
def settings_of_the_python_daemon_go_on(f):
    """Settings that the Python daemon ignored do no harm, and the user whose home has the queue still counts."""
    for programs, user in (("qvm-run", "--user=anna"), ("qrexec-client", "anna:nogui:")):
        f.renew(programs)
        house = migrated(f, ".qvm-remote", "export QVM_REMOTE_VMS=other\nQVM_REMOTE_VMS=work\n"
                                           "QVM_REMOTE_VM_USER=anna\nexport EDITOR=vi\nQUBES_REMOTE_VM=\n",
                         programs=programs)
        house.wait_for_agent("work")
        works(f, house, house.machine.home("work"))
        check(any(user in call for call in house.machine.calls()), house.machine.calls())
        for key in ("export QVM_REMOTE_VMS", "export EDITOR"):
            check(f"{key} is not a setting of ours and is ignored" in f.log(), f.log())
        f.stop()
        f.on_stop()


@case
def settings_that_are_not_made_start_nothing(f):
    house = migrated(f, ".qvm-remote", "QVM_REMOTE_VMS=work\n")
    f.stop()
    path = os.path.join(f.root, "etc/qubes/remote.conf")
    for line, says in (("QVM_REMOTE_MAX_MEMORY=", "QVM_REMOTE_MAX_MEMORY is empty: give it a value, or remove the line"),
                       ("QVM_REMOTE_TRANSPORT=''", "QVM_REMOTE_TRANSPORT is empty"),
                       ("QVM_REMOTE_QVM_RUN_USER=", "QVM_REMOTE_QVM_RUN_USER is empty"),
                       ("QVM_REMOTE_QVM_RUN_USER=a:b", "option 'user': 'a:b' is not the name of a user"),
                       ("export QVM_REMOTE_MAX_CPU=50", "write QVM_REMOTE_MAX_CPU=... without 'export'")):
        with open(path, "w") as conf:
            conf.write("QVM_REMOTE_VMS=work\n" + line + "\n")
        got = house.single_run()
        check(got.returncode == 1 and says in got.stderr.decode() and got.stderr.count(b"\n") == 1, got)


@case
def numbers_of_lines_may_be_options(f):
    house = migrated(f, ".qvm-remote", "QVM_REMOTE_VMS=work\n")
    house.wait_for_agent("work")
    works(f, house, house.machine.home("work"))
    for words in (("1",), ("-n", "1"), ("-n1",)):
        for run in (lambda *w: house.run("work", *w), f.dom0):
            got = run("log", *words)
            equal((words, got.returncode, got.stdout.count(b"\n"), got.stderr), (words, 0, 1, b""))
        equal(house.run("work", "history", *words).stdout.count(b"\n"), 1)
    for words in (("0",), ("-n",), ("-n", "-1"), ("-x", "1"), ("1", "2"), ("-n", "1", "2")):
        got = house.run("work", "log", *words)
        check(got.returncode == 1 and b"is not a number of lines: use 1 or more" in got.stderr, got)


@case
def the_first_command_may_come_before_dom0_has_called(f):
    house = migrated(f, ".qubes-remote", "QUBES_REMOTE_VM=work\n")
    f.stop()
    equal(house.run("work", "key", "show").stdout.decode().strip(), KEY)
    house.start()
    house.wait_for_agent("work")
    works(f, house, house.machine.home("work"))


@case
def options_of_the_bash_programs_are_taken_with_a_hint(f):
    def hinted(got, program, old, new):
        equal(got.returncode, 0)
        equal(got.stderr.decode().splitlines()[0], f"{program}: {old} is an old option: use `{program} {new}`")
        return got.stdout.decode()

    shown = hinted(f.run("--gen-key"), "qvm-remote", "--gen-key", "key gen")
    check(shown.startswith("SHA256:"), shown)
    key = hinted(f.run("--show-key"), "qvm-remote", "--show-key", "key show").strip()
    equal(len(key), 64)
    equal(hinted(f.run("--import-key", stdin=key.encode()), "qvm-remote", "--import-key", "key import"), shown)
    equal(hinted(f.run("--import-key", key), "qvm-remote", "--import-key", "key import"), shown)
    # A command with that name is not one of our options.
    f.start()
    equal(f.run("--", "echo", "--gen-key").stdout, b"--gen-key\n")
    equal(f.run("echo", "--gen-key").stdout, b"--gen-key\n")


main()
