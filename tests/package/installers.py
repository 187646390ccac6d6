#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The installers run to the end over stand-ins; and whatever step is made to fail, the machine is as it
was, with one line that says so and an exit code other than 0.

    installers.py BUILD-DIRECTORY [CASE...]
"""
import hashlib
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from machine import TOOLS, Machine, as_root, with_machines

BUILD = os.path.abspath(sys.argv[1])
CASES = []
# But for mktemp and mkdir: what they made and do not tell of, nobody can take away.
CHANGING = {"cp", "mv", "qvm-remote", "qvm-run", "qvm-shutdown", "qvm-start", "rpm", "systemctl", "systemd-run",
            "timeout"}
RPM = "dir/qvm-remote-dom0-2.0-1.x86_64.rpm"


def case(function):
    CASES.append(function)
    return function


def check(ok, what="check failed"):
    if not ok:
        raise AssertionError(what)


def equal(got, wanted):
    check(got == wanted, f"got {got!r}, not {wanted!r}")


def package(name="qvm-remote-dom0", version="2.0-1", **more):
    return "".join(f"{key}: {value}\n" for key, value in dict(name=name, version=version, **more).items()).encode()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def put(m, qube, path, data, sidecar=None):
    """A package in a qube, and the file with its digest."""
    m.write(f"standin/home/{qube}/{path}", data)
    m.write(f"standin/home/{qube}/{path}.sha256",
            f"{digest(data)}  {os.path.basename(path)}\n" if sidecar is None else sidecar)


def lines_of(script, done):
    return [line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith(script + ": ")]


def refused(m, script, call, before, pattern):
    """It ends with one line, which says why, and changes nothing."""
    done = call()
    check(done.returncode not in (0, 2, 126, 127), done)
    said = lines_of(script, done)
    equal(len(said), 1)
    check(re.search(pattern, said[0]), f"{said[0]!r} does not say {pattern!r}")
    check(all(32 <= b < 127 or b == 10 for b in done.stdout + said[0].encode()), f"unprintable: {done}")
    changed(m, before)


def changed(m, before, allowed=()):
    after = m.state()
    wrong = sorted(p for p in set(before) | set(after) if before.get(p) != after.get(p) and p not in allowed)
    check(not wrong, f"changed: {wrong}")


def each_fault(m, script, words, before, stdin="", settle=lambda: None, unheeded=()):
    """Each call of each program fails in turn, before it has done anything, and where that makes a
    difference after it has done all."""
    m.restore(before)
    m.forget_calls()
    done = m.run(f"/scripts/{script}", *words, stdin=stdin, count=TOOLS)
    settle()
    check(done.returncode == 0, done)
    good = m.state()
    count = {}
    for name in m.calls():
        count[name] = count.get(name, 0) + 1
    check(len(count) > 5, count)
    seen = 0
    for name, calls in sorted(count.items()):
        for number in range(1, min(calls, 2 if name == "sleep" else 12) + 1):
            for when in ("before", "after") if name in CHANGING else ("before",):
                fault = f"{name} {number} {when}"
                m.restore(before)
                m.forget_calls()
                done = m.run(f"/scripts/{script}", *words, stdin=stdin, fault=fault)
                settle()
                try:
                    if done.returncode == 0:
                        # It did not need that answer, or asked again: then all is done.
                        changed(m, good)
                        check(name in unheeded, "nobody heeds it")
                    else:
                        equal(len(lines_of(script, done)), 1)
                        changed(m, before)
                except AssertionError as e:
                    raise AssertionError(f"{fault}: {e}\n{done.stdout.decode()}{done.stderr.decode()}") from e
                seen += 1
    equal(m.violations(), "")
    m.restore(before)
    return seen


# --- install-dom0.sh ----------------------------------------------------------------------------


def dom0(m, data=None, sidecar=None):
    m.qube("work")
    data = package() if data is None else data
    put(m, "work", RPM, data, sidecar)
    return data, m.state()


def install(m, *words, stdin="yes\n", **more):
    return m.run("/scripts/install-dom0.sh", *words, "work", RPM, stdin=stdin, **more)


@case
def a_package_is_installed_after_a_typed_yes(m):
    data, _ = dom0(m)
    done = install(m)
    equal((done.returncode, done.stderr), (0, b""))
    check(digest(data).encode() in done.stdout, done.stdout)
    equal(m.read("standin/rpm/dom0/qvm-remote-dom0"), "2.0-1\n")
    equal(sorted(os.listdir(m.file("var/lib/qvm-remote"))), ["installed.rpm"])
    equal(m.state()["var/lib/qvm-remote"][0], "0o40700")
    equal(m.read("var/lib/qvm-remote/installed.rpm").encode(), data)
    equal(os.listdir(m.file("standin/units")), [])  # nothing is started
    equal(m.violations(), "")


@case
def anything_but_yes_installs_nothing(m):
    _, before = dom0(m)
    for answer in ("", "\n", "no\n", "y\n", "Yes\n", "yes please\n", " yes\n"):
        refused(m, "install-dom0.sh", lambda: install(m, stdin=answer), before, "not confirmed")
    check("rpm" not in m.calls(), "rpm has read a package that nobody confirmed")


@case
def yes_without_a_question_needs_a_digest_from_elsewhere(m):
    data, before = dom0(m)
    refused(m, "install-dom0.sh", lambda: install(m, "--yes", stdin=""), before, "--yes needs --sha256")
    other = digest(b"another")
    refused(m, "install-dom0.sh", lambda: install(m, "--yes", "--sha256", other, stdin=""), before, "another digest")
    for bad in ("", "abc", digest(data).upper(), digest(data) + "0"):
        refused(m, "install-dom0.sh", lambda: install(m, "--sha256", bad), before, "64 digits")
    check("rpm" not in m.calls(), "rpm has read a package of another digest")
    equal(install(m, "--yes", "--sha256", digest(data), stdin="").returncode, 0)


@case
def what_a_hostile_qube_sends_is_refused(m):
    data, before = dom0(m)
    huge = b"\0" * (64 * 1024 * 1024)
    escape = b"\x1b]0;owned\x07" * 40
    rows = [
        (data + b"x", f"{digest(data)}  x\n", "is not what"),
        (data, digest(data)[:-1] + "\n", "does not begin with"),
        (data, b"\0" * 64, "does not begin with"),
        (data, b"\x1b[31m" + digest(data).encode(), "does not begin with"),
        (data, digest(data).upper(), "does not begin with"),
        (data, "$(touch /owned)\n", "does not begin with"),
        (data, "0" * 4096, "larger than"),
        (data, "", "does not begin with"),
        (huge, None, "larger than"),
        (b"", None, "rpm cannot read"),
        (escape, None, "rpm cannot read"),
        (package(name="qubes-core-dom0"), None, "something else"),
        (package(name="qvm-remote-dom0 \x1b[31m"), None, "something else"),
        (package(version="$(touch /owned)"), None, "something else"),
        (package(version="2.0-1\nversion: 3"), None, "something else"),
    ]
    for content, sidecar, pattern in rows:
        m.restore(before)
        put(m, "work", RPM, content, sidecar)
        here = m.state()
        refused(m, "install-dom0.sh", lambda: install(m), here, pattern)
    check(not os.path.exists(m.file("owned")), "a text of the qube's was run")
    m.restore(before)
    m.remove(f"standin/home/work/{RPM}")
    refused(m, "install-dom0.sh", lambda: install(m), m.state(), "cannot read")
    equal(m.violations(), "")


@case
def a_qube_that_sends_without_end_is_left_at_the_limit(m):
    dom0(m)
    path = f"standin/home/work/{RPM}"
    m.remove(path)
    os.symlink("/dev/zero", m.file(path))
    before = m.state()
    begin = time.monotonic()
    refused(m, "install-dom0.sh", lambda: install(m), before, "larger than")
    check(time.monotonic() - begin < 200, "it went on for long")


@case
def a_qube_that_stalls_does_not_hold_who_gives_up(m):
    template(m)
    for path in (RPM, KINDS["rpm"]):
        put(m, "work", path, package())
        m.remove(f"standin/home/work/{path}.sha256")
        os.mkfifo(m.file(f"standin/home/work/{path}.sha256"))
    before = m.state()
    for script, words in (("install-dom0.sh", f"work {RPM}"), ("install-template.sh", f"t work {KINDS['rpm']}")):
        m.forget_calls()
        done = m.run("-c", f"""
            bash /scripts/{script} {words} </dev/null & pid=$!
            until [ -e /standin/count.cat ]; do /usr/bin/sleep 0.05; done
            kill -TERM $pid; wait $pid""", count=["cat"])
        equal(done.returncode, 143)
        refused(m, script, lambda: done, before, "broken off")


@case
def wrong_user_and_wrong_place_are_said_in_one_line(m):
    _, before = dom0(m)
    if as_root():
        os.chmod(m.file("scripts"), 0o755)
        before = m.state()
        refused(m, "install-dom0.sh", lambda: install(m, uid=65534), before, "needs root")
        os.chmod(m.file("scripts"), 0o755)
    m.remove("etc/qubes-release")
    before = m.state()
    refused(m, "install-dom0.sh", lambda: install(m), before, "dom0 of Qubes OS")
    refused(m, "install-template.sh", lambda: m.run("/scripts/install-template.sh", "t", "work", RPM), before, "in dom0")
    m.write("etc/qubes-release", "Qubes release 4.3 (R4.3)\n")
    before = m.state()
    refused(m, "upgrade-dom0.sh", lambda: m.run("/scripts/upgrade-dom0.sh", RPM), before, "in a qube")
    m.qube("work", state="halted")
    before = m.state()
    refused(m, "install-dom0.sh", lambda: install(m), before, "not running")
    m.qube("work")
    m.remove("local/bin/qvm-run")
    refused(m, "install-dom0.sh", lambda: install(m), m.state(), "qvm-run is missing")


@case
def programs_say_in_one_line_that_they_are_in_the_wrong_place(m):
    def says(wanted, program, *words, uid=None, code=1):
        done = m.run("-c", 'exec "$@" </dev/null', "sh", "/usr/local/lib/" + program, *words, uid=uid)
        lines = done.stderr.decode().splitlines()
        check((done.returncode, done.stdout, len(lines)) == (code, b"", 1) and lines[0].startswith(program + ": ") and
              wanted in lines[0], f"{program} {words} does not say {wanted!r}: {done}")

    os.mkdir(m.file("local/lib"))
    for program in ("qvm-remote", "qvm-remote-dom0", "qvm-remote-agent"):
        shutil.copy(os.path.join(BUILD, "tools", program, program), m.file("local/lib"))
    admin = [["keys"], ["authorize", "work"], ["revoke", "work"], ["rotate", "work"], ["connect", "work"],
             ["disconnect", "work"], ["queue"], ["migrate"], ["log"], ["audit", "verify"], ["resume"], ["enable"],
             ["disable"]]
    before = m.state()
    for words in [["true"], ["--exec", "true"], ["ping"], ["status"], ["key", "show"]]:
        says("this is dom0", "qvm-remote", *words)
    m.remove("etc/qubes-release")
    says("no key for root at /root/.qvm-remote/auth.key", "qvm-remote", "true")
    # A daemon of its own that is not there is refused here; one that does not come up was not reached.
    os.rename(m.file("local/lib/qvm-remote-dom0"), m.file("local/lib/kept"))
    says("install qvm-remote-devel", "qvm-remote", "--transport", "mock", "true")
    m.write("local/lib/qvm-remote-dom0", "#!/bin/sh\nexit 1\n", 0o755)
    says("the private daemon ended at once", "qvm-remote", "--transport", "mock", "true", code=255)
    os.rename(m.file("local/lib/kept"), m.file("local/lib/qvm-remote-dom0"))
    if as_root():
        os.chmod(m.file("."), 0o755)
        says("the daemon needs root", "qvm-remote-dom0", uid=65534)
        for words in admin:
            says(f"{words[0]} needs root", "qvm-remote-dom0", *words, uid=65534)
        for words in [["status"], ["approvals", "list"], ["panic"]]:
            says("", "qvm-remote-dom0", *words, uid=65534)
    m.write("share/qubes/marker-vm", "")
    for words in [[], ["--once"], *admin, ["status"], ["approvals", "list"], ["panic"], ["policy", "lint"]]:
        says("this is a qube", "qvm-remote-dom0", *words)
    says("pipes or sockets", "qvm-remote-agent")
    m.write("etc/qubes-release", "")
    for script, words in (("install-dom0.sh", ["work", RPM]), ("install-template.sh", ["t", "work", RPM])):
        done = m.run("/scripts/" + script, *words)
        equal((done.returncode, len(lines_of(script, done))), (1, 1))
    m.remove("share/qubes/marker-vm")
    os.rmdir(m.file("share/qubes"))
    changed(m, before, ["etc/qubes-release", "root/.qvm-remote", "root/.qvm-remote/agent.lock"])


@case
def options_of_the_bash_daemon_are_taken_with_a_hint(m):
    m.qube("work")
    os.mkdir(m.file("local/lib"))
    shutil.copy(os.path.join(BUILD, "tools/qvm-remote-dom0/qvm-remote-dom0"), m.file("local/lib"))
    for old, new, more, out in (("--authorize", "authorize", ["work", "0123456789abcdef" * 4], "work SHA256:"),
                                ("--list-keys", "keys", [], "work  "), ("--revoke", "revoke", ["work"], "")):
        done = m.run("-c", 'exec "$@"', "sh", "/usr/local/lib/qvm-remote-dom0", old, *more)
        check(done.returncode == 0 and done.stdout.decode().startswith(out), done)
        equal(done.stderr.decode().splitlines()[0],
              f"qvm-remote-dom0: {old} is an old option: use `qvm-remote-dom0 {new}`")
    check(not os.path.exists(m.file("etc/qubes/remote.d/work.key")), "it was not revoked")


@case
def words_that_are_no_names_are_refused(m):
    _, before = dom0(m)
    for qube, path in (("dom0", RPM), ("a b", RPM), ("-x", RPM), ("../x", RPM), ("w\x1b[31m", RPM), ("", RPM),
                       ("work", "a'b.rpm"), ("work", "$(id).rpm"), ("work", "a b.rpm"), ("work", "-x.rpm"),
                       ("work", "x.deb"), ("work", ""), ("work", "a\nb.rpm")):
        refused(m, "install-dom0.sh", lambda: m.run("/scripts/install-dom0.sh", qube, path), before, "no name of a qube|path in the qube|usage")
    for words in ((), ("work",), ("work", RPM, "x"), ("--what", "work", RPM)):
        refused(m, "install-dom0.sh", lambda: m.run("/scripts/install-dom0.sh", *words), before, "usage")


@case
def half_a_script_does_nothing(m):
    _, before = dom0(m)
    for script, words in (("install-dom0.sh", ["work", RPM]), ("install-template.sh", ["t", "work", RPM]),
                          ("upgrade-dom0.sh", [RPM])):
        whole = m.read("scripts/" + script)
        for part in range(1, 10):
            m.write("scripts/half", whole[:len(whole) * part // 10])
            m.run("/scripts/half", *words, stdin="yes\n")
            m.remove("scripts/half")
            changed(m, before)


@case
def a_failing_rpm_leaves_what_was_there(m):
    for more, pattern in ((dict(needs="libsqlite3"), "rpm would not install it: .*libsqlite3"),
                          (dict(fails="yes"), "rpm did not install it: .*scriptlet")):
        dom0(m, package(**more))
        refused(m, "install-dom0.sh", lambda: install(m), m.state(), pattern)
        m.write("standin/rpm/dom0/qvm-remote-dom0", "1.4-1\n")
        refused(m, "install-dom0.sh", lambda: install(m), m.state(), pattern)
        m.remove("standin/rpm/dom0/qvm-remote-dom0")
    dom0(m)
    m.write("standin/rpm/dom0/qvm-remote-dom0", "2.0-1\n")
    refused(m, "install-dom0.sh", lambda: install(m), m.state(), "already installed")


@case
def each_step_of_a_first_installation_fails_in_turn(m):
    _, before = dom0(m)
    return each_fault(m, "install-dom0.sh", ["work", RPM], before, "yes\n", unheeded=["mv"])


@case
def each_step_of_an_installation_over_an_older_one_fails_in_turn(m):
    old = package(version="1.9-1")
    dom0(m, old)
    equal(install(m).returncode, 0)
    _, before = dom0(m)
    return each_fault(m, "install-dom0.sh", ["work", RPM], before, "yes\n", unheeded=["mv"])


@case
def an_older_one_that_is_not_kept_and_is_gone_is_said_to_be(m):
    dom0(m)
    m.write("standin/rpm/dom0/qvm-remote-dom0", "1.4-1\n")
    before = m.state()
    # -qa, -qp of the package and -U --test come before: rpm has done it and reports a failure.
    done = install(m, fault="rpm 4 after")
    equal(done.returncode, 1)
    said = lines_of("install-dom0.sh", done)
    check(len(said) == 2 and "1.4-1 is not kept" in said[1], said)
    changed(m, before, ["standin/rpm/dom0/qvm-remote-dom0"])


# --- install-template.sh ------------------------------------------------------------------------


KINDS = {"rpm": "c/qvm-remote-2.0-1.x86_64.rpm", "deb": "c/qvm-remote_2.0-1_amd64.deb",
         "pkg.tar.zst": "c/qvm-remote-2.0-1-x86_64.pkg.tar.zst"}


def template(m, kind="rpm", state="halted", **more):
    m.qube("work")
    m.qube("t", state, "TemplateVM")
    put(m, "work", KINDS[kind], package("qvm-remote", **more))
    return m.state()


def into_template(m, kind="rpm", *words, stdin="yes\n", **more):
    return m.run("/scripts/install-template.sh", *words, "t", "work", KINDS[kind], stdin=stdin, **more)


@case
def a_template_gets_the_client_and_is_left_as_it_ran(m):
    for kind in KINDS:
        for state in ("halted", "running"):
            before = template(m, kind, state)
            done = into_template(m, kind)
            equal((done.returncode, done.stderr), (0, b""))
            equal(m.read("standin/rpm/t/qvm-remote"), "2.0-1\n")
            equal(m.read("standin/vms/t"), state + "\n")
            changed(m, before, ["standin/rpm/t/qvm-remote"])
            m.remove("standin/rpm/t/qvm-remote")
    equal(m.violations(), "")


@case
def a_template_is_not_touched_without_a_yes_or_a_digest(m):
    before = template(m)
    m.forget_calls()
    refused(m, "install-template.sh", lambda: into_template(m, stdin="no\n"), before, "not confirmed")
    refused(m, "install-template.sh", lambda: into_template(m, "rpm", "--yes"), before, "--yes needs --sha256")
    refused(m, "install-template.sh", lambda: into_template(m, "rpm", "--yes", "--sha256", "0" * 64), before, "another digest")
    check("qvm-start" not in m.calls(), "it was started")
    good = digest(package("qvm-remote"))
    equal(into_template(m, "rpm", "--yes", "--sha256", good, stdin="").returncode, 0)


@case
def what_is_no_template_is_refused(m):
    template(m)
    for kind, pattern in (("AppVM", "no template"), ("DispVM", "no template"), ("AdminVM", "no template")):
        m.qube("t", "running", kind)
        refused(m, "install-template.sh", lambda: into_template(m), m.state(), pattern)
    m.qube("t", "paused", "TemplateVM")
    refused(m, "install-template.sh", lambda: into_template(m), m.state(), "neither running nor off: Paused")
    m.remove("standin/class/t")
    refused(m, "install-template.sh", lambda: into_template(m), m.state(), "there is no t")


@case
def a_package_that_does_not_install_leaves_the_template_as_it_was(m):
    for kind in KINDS:
        for state in ("halted", "running"):
            rows = [(dict(name="other"), "something else")]
            if kind != "pkg.tar.zst":
                rows.append((dict(fails="yes"), "does not say that it installed it"))
            for more, pattern in rows:
                template(m, kind, state)
                put(m, "work", KINDS[kind], package(**{"name": "qvm-remote", **more}))
                refused(m, "install-template.sh", lambda: into_template(m, kind), m.state(), pattern)


def each_step_towards(m, state):
    # Whether the package is there is asked by an exit code; one that lies is believed. The template's
    # own word counts, and not how the call ends; whether it is off again is asked twice.
    return each_fault(m, "install-template.sh", ["t", "work", KINDS["rpm"]], template(m, "rpm", state), "yes\n",
                      unheeded=["qvm-ls", "qvm-run", "qvm-shutdown", "rpm", "timeout"])


@case
def each_step_towards_a_template_that_was_off_fails_in_turn(m):
    return each_step_towards(m, "halted")


@case
def each_step_towards_a_running_template_fails_in_turn(m):
    return each_step_towards(m, "running")


# --- upgrade-dom0.sh ----------------------------------------------------------------------------


def upgrade_from(m, **more):
    """The version before, as install-dom0.sh and enable leave it, and a new package in the qube."""
    if not os.path.exists(m.file("var/lib/qvm-remote")):
        dom0(m, package(version="1.9-1"))
        equal(install(m).returncode, 0)
        m.write("standin/units/qvm-remote-dom0.service", "1.9-1\n")
        m.remove("etc/qubes-release")
    m.write("scripts/new.rpm", package(**more))
    return m.state()


def upgrade(m, *words, stdin="yes\n", **more):
    done = m.run("/scripts/upgrade-dom0.sh", *words, "/scripts/new.rpm", stdin=stdin, **more)
    m.wait_for_units()
    return done


UPGRADED = ["standin/rpm/dom0/qvm-remote-dom0", "standin/units/qvm-remote-dom0.service",
            "var/lib/qvm-remote/installed.rpm"]


@case
def dom0_is_upgraded_through_the_daemon_itself(m):
    before = upgrade_from(m)
    done = upgrade(m)
    equal((done.returncode, done.stderr), (0, b""))
    check(digest(package()).encode() in done.stdout, done.stdout)
    changed(m, before, UPGRADED)
    equal([m.read(p) for p in UPGRADED], ["2.0-1\n", "2.0-1\n", package().decode()])
    m.restore(before)
    equal(upgrade(m, "--yes", stdin="").returncode, 0)
    equal(m.violations(), "")


@case
def dom0_is_upgraded_through_the_real_client_and_daemon(m):
    """The same over the mock transport, with a private daemon for each command and systemd's part outside."""
    upgrade_from(m)
    m.qube("mock")  # as the private daemon calls us, and asks for
    os.makedirs(m.file("local/lib/plugins"))
    for path, place in (("tools/qvm-remote/qvm-remote", ""), ("tools/qvm-remote-dom0/qvm-remote-dom0", ""),
                        ("plugins/mock/mock.so", "plugins")):
        shutil.copy(os.path.join(BUILD, path), m.file("local/lib/" + place))
    m.remove("local/bin/qvm-remote")
    m.write("local/bin/qvm-remote", "#!/bin/bash\nexec /usr/local/lib/qvm-remote --transport mock --plugin-dir "
            "/usr/local/lib/plugins \"$@\"\n", 0o755)
    m.write("standin/job", "")
    before = m.state()
    done = m.run("-c", """
        { for ((i = 0; i < 4000; ++i)); do [ ! -s /standin/job ] || break; /usr/bin/sleep 0.05; done
          eval "$(</standin/job)"; : >/standin/job; rm /standin/units/qvm-remote-upgrade.service
        } </dev/null >/dev/null 2>&1 &
        exec bash /scripts/upgrade-dom0.sh --yes /scripts/new.rpm""")
    m.wait_for_units()
    equal((done.returncode, done.stderr), (0, b""))
    changed(m, before, UPGRADED + [p for p in m.state() if p.startswith("root/.qvm-remote")])
    equal([m.read(p) for p in UPGRADED], ["2.0-1\n", "2.0-1\n", package().decode()])
    # And what dom0 refuses is told here.
    done = m.run("/scripts/upgrade-dom0.sh", "--yes", "/scripts/new.rpm")
    equal(done.stderr, b"upgrade-dom0.sh: dom0 is as it was: 2.0-1 is installed already \n")


@case
def an_upgrade_that_does_not_answer_is_taken_back(m):
    for version, pattern in (("2.0-dead", "back at 1.9-1: the new daemon does not start"),
                             ("2.0-deaf", "back at 1.9-1: no answer through the new daemon")):
        before = upgrade_from(m, version=version)
        refused(m, "upgrade-dom0.sh", lambda: upgrade(m), before, pattern)
    before = upgrade_from(m, fails="yes")
    refused(m, "upgrade-dom0.sh", lambda: upgrade(m), before, "back at 1.9-1: rpm did not install it: .*scriptlet")


@case
def an_upgrade_that_a_restart_of_dom0_ends_is_confirmed_by_the_next_call(m):
    upgrade_from(m)
    sleep = m.file("local/bin/sleep")
    os.rename(sleep, sleep + ".kept")  # nobody's patience ends before dom0 does
    m.write("standin/job", "")
    done = m.run("-c", """
        bash /scripts/upgrade-dom0.sh --yes /scripts/new.rpm & here=$!
        until [ -s /standin/job ]; do sleep 0.05; done
        kill -KILL $here; rm -r /tmp/tmp.*
        eval "exec $(</standin/job)" & there=$!
        until [ -e /var/lib/qvm-remote/upgrade.*/restarted ]; do sleep 0.05; done
        kill -KILL $there; wait $there
        rm /standin/job /standin/units/qvm-remote-upgrade.service""")
    equal(done.returncode, 0)
    os.rename(sleep + ".kept", sleep)
    equal([m.read(p) for p in UPGRADED], ["2.0-1\n", "2.0-1\n", package(version="1.9-1").decode()])
    before = m.state()
    [left] = [p for p in before if re.fullmatch(r"var/lib/qvm-remote/upgrade\.\w+", p)]
    # The same package again: it is there, and is kept to go back to from now on.
    done = upgrade(m)
    equal((done.returncode, done.stderr), (1, b"upgrade-dom0.sh: dom0 is as it was: 2.0-1 is installed already, and "
                                              b"confirmed by this call: dom0 restarted before its answer \n"))
    changed(m, before, [p for p in before if p.startswith(left)] + UPGRADED[2:])
    equal([m.read(p) for p in UPGRADED], ["2.0-1\n", "2.0-1\n", package().decode()])
    check(not os.path.exists(m.file(left)), "what was staged is not removed")
    # A next one goes on from there.
    m.restore(before)
    m.write("scripts/new.rpm", package(version="2.1-1"))
    done = upgrade(m)
    equal((done.returncode, done.stderr), (0, b""))
    check(b"dom0 restarted before 2.0-1 was confirmed" in done.stdout, done.stdout)
    equal([m.read(p) for p in UPGRADED], ["2.1-1\n", "2.1-1\n", package(version="2.1-1").decode()])
    # Half a package is none to go back to.
    m.restore(before)
    m.write(left + "/package.rpm", package(damaged="yes"))
    refused(m, "upgrade-dom0.sh", lambda: upgrade(m), m.state(), "the package of 2.0-1 is not kept there")
    # And rpm itself may have been in the midst.
    m.restore(before)
    m.write(UPGRADED[0], "1.9-1\n2.0-1\n")
    refused(m, "upgrade-dom0.sh", lambda: upgrade(m), m.state(), "more than one: 1.9-1, 2.0-1")
    equal(m.violations(), "")


@case
def an_upgrade_is_refused_before_anything_changes(m):
    for more, pattern in ((dict(name="other"), "something else"), (dict(needs="x"), "rpm would not install it"),
                          (dict(version="1.9-1"), "installed already"), (dict(version="1.8-1"), "already installed"),
                          (dict(version="$(id)"), "something else")):
        before = upgrade_from(m, **more)
        refused(m, "upgrade-dom0.sh", lambda: upgrade(m), before, "dom0 is as it was: .*" + pattern)
    before = upgrade_from(m)
    refused(m, "upgrade-dom0.sh", lambda: upgrade(m, stdin="no\n"), before, "not confirmed")
    for path, pattern in (("var/lib/qvm-remote/installed.rpm", "not kept there"),
                          ("standin/rpm/dom0/qvm-remote-dom0", "not installed by rpm"),
                          ("standin/units/qvm-remote-dom0.service", "not reached")):
        m.restore(before)
        m.remove(path)
        refused(m, "upgrade-dom0.sh", lambda: upgrade(m), m.state(), pattern)
    m.restore(before)
    m.write("var/lib/qvm-remote/installed.rpm", package(version="1.7-1"))
    refused(m, "upgrade-dom0.sh", lambda: upgrade(m), m.state(), "not kept there")
    m.restore(before)
    m.remove("scripts/new.rpm")
    refused(m, "upgrade-dom0.sh", lambda: upgrade(m), m.state(), "cannot read /scripts/new.rpm")


@case
def each_step_of_an_upgrade_fails_in_turn(m):
    before = upgrade_from(m)
    return each_fault(m, "upgrade-dom0.sh", ["/scripts/new.rpm"], before, "yes\n", settle=m.wait_for_units,
                      unheeded=["qvm-remote", "sleep", "cat", "mv", "systemctl"])


def run(function, place):
    begin = time.monotonic()
    try:
        faults = function(Machine(place))
        verdict = f"ok, {faults} faults" if faults else "ok"
    except Exception as e:  # the rest is run all the same
        verdict = f"FAILED: {type(e).__name__}: {e}"[:3000]
    print(f"{function.__name__:68} {time.monotonic() - begin:6.2f} s  {verdict}", flush=True)
    return verdict


def main(scratch):
    os.umask(0o022)
    wanted = [c for c in CASES if c.__name__ in (sys.argv[2:] or c.__name__)]
    wanted.sort(key=lambda c: not c.__name__.startswith("each_"))  # the long ones first
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        verdicts = list(workers.map(lambda c: run(c, os.path.join(scratch, c.__name__[:60])), wanted))
    failed = sum(not v.startswith("ok") for v in verdicts)
    print(f"{len(wanted)} cases, {failed} failed")
    return 1 if failed else 0


sys.exit(with_machines(main))
