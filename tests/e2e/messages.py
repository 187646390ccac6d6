#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of the programs after a mistake of a user or an operator: each names the cause and the remedy.
Usage: messages.py BUILD-DIRECTORY [CASE...]
"""

import os
import re
import signal
import subprocess
import time

from fixture import BUILD, CLIENT, DAEMON, HANG, KEY, case, check, equal, main
from house import House

AGENT = os.path.join(BUILD, "tools/qvm-remote-agent/qvm-remote-agent")


def config(f, text):
    path = os.path.join(f.home, ".qvm-remote", "config")
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    with open(path, "w") as c:
        c.write(text)
    return path


@case
def a_wrong_option_is_one_line(f):
    f.write_key()
    for program, words, said in [
        (CLIENT, ("-t", "", "true"), "option '--timeout' has an empty value: leave it out, or give a SEC"),
        (CLIENT, ("--script=",), "option '--script' has an empty value: leave it out, or give a FILE"),
        (CLIENT, ("--script",), "option '--script' needs a value: give a FILE"),
        (CLIENT, ("-t",), "option '--timeout' needs a value: give a SEC"),
        (CLIENT, ("--nonsense=1", "x"), "there is no option '--nonsense'"),
        (CLIENT, ("-x",), "there is no option '-x'"),
        (CLIENT, ("--help=1",), "option '--help' takes no value"),
        (CLIENT, ("--ver",), "option '--ver' is ambiguous: --verbose, --version"),
        (CLIENT, ("--\x1b[2J",), r"there is no option '--\x1b[2J'"),
        (DAEMON, ("--vm", ""), "option '--vm' has an empty value: leave it out, or give a VM"),
        (DAEMON, ("--root", f.root, "authorize", "work", "--level", ""),
         "option '--level' has an empty value: leave it out, or give a LEVEL"),
        (DAEMON, ("--root", f.root, "authorize", "work", "--nonsense"), "there is no option '--nonsense'"),
        (DAEMON, ("--root", f.root, "audit", "verify", "--since", "3"), "option '--since' does not belong here"),
        (AGENT, ("--nonsense",), "there is no option '--nonsense'"),
    ]:
        got = f.run(*words, program=program)
        name = os.path.basename(program)
        equal((got.returncode, got.stdout, got.stderr.decode()), (1, b"", f"{name}: {said}; see {name} --help\n"))


@case
def wrong_arguments_are_answered_with_the_row_of_the_help(f):
    f.write_key()
    for program, options in ((CLIENT, ()), (DAEMON, ("--root", f.root))):
        name = os.path.basename(program)
        text = f.run("--help", program=program).stdout.decode()
        rows = re.findall(r"^  (([a-z]+).*?)(?:  .*)?$", text.split("\nSubcommands:\n")[1], re.M)
        check(len(rows) > 5, rows)
        for row, subcommand in rows:
            if subcommand == "log":  # it takes one word, and its message says that the word is not a number
                continue
            words = ("show",) if subcommand == "history" else ("x", "y", "z")
            got = f.run(*options, subcommand, *words, program=program)
            equal((got.returncode, got.stdout, got.stderr.decode()), (1, b"", f"{name}: usage: {name} {row}\n"))


@case
def a_misspelt_setting_is_named_once(f):
    f.start()
    path = config(f, "QVM_REMOTE_HISTORY_DAY=3\nQVM_REMOTE_MOCK_SEED=1\nQVM_REMOTE_NONSENSE=1\n")
    said = (f"qvm-remote: warning: {path}: QVM_REMOTE_HISTORY_DAY is not a setting and is ignored; "
            "did you mean QVM_REMOTE_HISTORY_DAYS?\n"
            f"qvm-remote: warning: {path}: QVM_REMOTE_NONSENSE is not a setting and is ignored\n")
    got = f.run("echo out; exit 3")
    equal((got.returncode, got.stdout, got.stderr.decode()), (3, b"out\n", said))
    equal(f.run("-q", "true").stderr, b"")
    config(f, "QVM_REMOTE_TRANPORT=qrexec\nQVM_REMOTE_OWN_COLOR=red\n")
    got = f.run("true", env={"QVM_REMOTE_OTHER": "1"})
    check(got.returncode == 0 and b"did you mean QVM_REMOTE_TRANSPORT?" in got.stderr
          and b"QVM_REMOTE_OWN_COLOR is not a setting" in got.stderr and b"OTHER" not in got.stderr, got)
    # The transport 'own' has this setting.
    config(f, "QVM_REMOTE_OWN_COLOR=red\n")
    check(b"not a setting" not in f.run("true", env={"QVM_REMOTE_TRANSPORT": "own"}).stderr, "an option of 'own'")


@case
def the_agent_warns_of_a_misspelt_setting_too(f):
    config(f, "QVM_REMOTE_HISTORY_MB=3\nQVM_REMOTE_QREXEC_CLIENT=/nowhere\n")
    agent = subprocess.Popen([AGENT, "--keep"], env=f.env(QVM_REMOTE_TRANSPORT=None, QVM_REMOTE_PLUGIN_DIR=None,
                                                          QVM_REMOTE_MOCK_SOCKET=None),
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    line = agent.stderr.readline()
    agent.terminate()
    rest = agent.stderr.read()
    agent.wait(HANG)
    check(line.startswith(b"qvm-remote-agent: warning: ") and b"did you mean QVM_REMOTE_HISTORY_MIB?" in line, line)
    check(b"not a setting" not in rest, rest)


@case
def text_that_is_not_a_key_is_described(f):
    f.start()
    for text, said in ((b"abc\n", b"it ends after 3 digits"), (KEY.encode() + b"0", b"it goes on after 64 digits"),
                       (b" 0x12", b"byte 3 is not a digit"), (b"\n", b"it is empty")):
        for got in (f.run("key", "import", stdin=text), f.dom0("authorize", "dev", stdin=text)):
            check(got.returncode == 1 and b"this is not a key: " + said + b"; a key is 64 digits" in got.stderr, got)
            check(len(text) < 10 or text not in got.stderr, "the key is shown")
    f.write_key("abc\n")
    got = f.run("true")
    check(got.returncode == 1 and b"it ends after 3 digits" in got.stderr and b"key gen" in got.stderr, got)


@case
def a_log_line_is_shown_as_it_was_written(f):
    f.start()
    equal(f.run(r"printf '\\x1b'").returncode, 0)
    with open(os.path.join(f.root, "var/log/qubes/qvm-remote.log"), "ab") as log:
        log.write(b"[2026-01-01T00:00:00] foreign \x1b[2J\n")
    shown = f.dom0("log").stdout.decode()
    with open(os.path.join(f.root, "var/log/qubes/qvm-remote.log"), "rb") as log:
        lines = log.read().split(b"\n")
    written = [line.decode() for line in lines if b"cmd=" in line]
    check(written and written[-1] in shown.split("\n"), (written, shown))
    check(r"foreign \x1b[2J" in shown and "\x1b" not in shown, shown)


@case
def lint_prints_ascii(f):
    path = os.path.join(f.root, "etc/qubes/remote-policy.d/30-test.policy")
    os.makedirs(os.path.dirname(path), 0o755)
    for rule in ("work " + "x" * 100 + " allow", "work exec:ls {qube allow", "work exec:ls a* allow"):
        with open(path, "w") as p:
            p.write(rule + "\n")
        got = f.dom0("policy", "lint")
        check(got.returncode == 1 and b"\\x" not in got.stdout and got.stdout.isascii(), got)
    check(b"{qube:GLOB}" in got.stdout, got)


@case
def policy_check_takes_no_empty_value(f):
    f.start()
    for option, value in (("--script", "FILE"), ("--argument", "LEVEL")):
        got = f.dom0("policy", "check", option, "", "work", "--", "true")
        equal((got.returncode, got.stdout, got.stderr.decode()),
              (1, b"", f"qvm-remote-dom0: option '{option}' has an empty value: leave it out, or give a {value}\n"))


@case
def fetch_says_what_it_waits_for(f):
    house = House(f, "work")
    house.add("dev", authorized=False)
    # A qube that does not answer.
    programs = os.path.join(f.path, "programs")
    os.mkdir(programs)
    with open(os.open(os.path.join(programs, "qvm-run"), os.O_WRONLY | os.O_CREAT, 0o755), "w") as p:
        p.write("#!/bin/sh\nexec sleep 1000\n")
    env = f.env(PATH=programs + ":" + os.environ["PATH"])
    begin = time.monotonic()
    fetch = subprocess.Popen([DAEMON, "--root", f.root, "authorize", "dev", "--fetch"], env=env,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = fetch.stderr.readline()
    check(line == b"Reading the key in dev, for 15 seconds at most ...\n" and time.monotonic() - begin < 5, line)
    said = fetch.communicate(timeout=HANG)[1]
    check(fetch.returncode == 1 and b"qvm-run did not end within 15 s" in said
          and b"`qvm-remote key show` there" in said and b"`qvm-remote-dom0 authorize dev`" in said, said)


@case
def an_expired_key_is_named_to_its_holder_alone(f):
    f.start()
    equal(f.dom0("authorize", "work", "--until", "8h", stdin=KEY.encode()).returncode, 0)
    until = os.path.join(f.root, "etc/qubes/remote.d/work.until")
    end = int(time.time()) - 60
    with open(until, "w") as u:
        u.write(f"{end}\n")
    f.daemon.send_signal(signal.SIGHUP)
    got = f.run("true")
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(end))
    equal((got.returncode, got.stderr.decode()),
          (126, f"qvm-remote: dom0 refuses: the key has expired (on {date}; in dom0: qvm-remote-dom0 authorize work "
                "--fetch)\n"))
    check(any(line.get("reason") == "key_expired" for line in f.audit()), f.audit())
    # A client with another key is not told that a key expired.
    f.write_key("f" * 64 + "\n")
    got = f.run("true")
    check(got.returncode == 126 and b"token does not verify" in got.stderr and b"expired" not in got.stderr, got)
    f.write_key()
    equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    equal(f.run("true").returncode, 0)


@case
def what_the_daemon_says_ends_its_line(f):
    f.start()
    path = os.path.join(f.root, "etc/qubes/remote.conf")
    with open(path, "w") as c:
        c.write("nonsense\n")
    os.chmod(path, 0o600)
    got = f.dom0("revoke", "work")
    check(b"the daemon says: " in got.stderr and got.stderr.endswith(b"\n") and b"\\n" not in got.stderr, got)


main()
