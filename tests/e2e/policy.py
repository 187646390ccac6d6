#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy from files to processes, and its administration: policy.py BUILD-DIRECTORY [CASE...]"""

import hashlib
import os
import random
import signal
import subprocess
import sys

from fixture import BUILD, DAEMON, HANG, KEY, PLUGINS, case, check, equal, eventually, main
from policies import begin, level_file, rules

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "standin"))
from machine import Machine  # noqa: E402


def denied(got, *words):
    equal(got.returncode, 126)
    equal(got.stdout, b"")
    for word in words:
        check(word in got.stderr, got)


@case
def a_level_allows_only_its_commands(f):
    f.write_key()
    got = f.dom0("authorize", "work", "--level", "read-only", stdin=KEY.encode())
    equal(got.returncode, 0)
    check(b"IS dom0" not in got.stderr, got)
    f.spawn("mock", QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work")
    equal(f.run("true").returncode, 0)
    equal(f.run(stdin=b"uname -s\n").stdout, b"Linux\n")
    equal(f.run("cat", "/proc/version").stdout[:5], b"Linux")
    for words in (["true; id"], ["echo", "hi"], ["bash"], ["cat", "/etc/passwd"], ["date", "01010101"],
                  ["--exec", "true", "x"], ["--exec", "/bin/true"], ["true\nid"]):
        denied(f.run(*words), b"policy")
    check(b"level: monitor" in f.run("status").stdout, "its level")
    equal([r["policy"] for r in f.audit() if r["kind"] == "START"][0], "50-work.policy:5 work level:monitor allow")
    equal([r["policy"] for r in f.audit() if r["kind"] == "REFUSED"][0], "no rule matches")


@case
def a_line_runs_as_an_argv_without_a_shell(f):
    begin(f, "work exec:echo ** allow\nwork exec:cat /proc/self/cmdline allow\n")
    equal(f.run("echo", "a=b", "/etc/x").stdout, b"a=b /etc/x\n")
    equal(f.run("--exec", "echo", "$HOME", ";", "`id`", "*").stdout, b"$HOME ; `id` *\n")
    denied(f.run("echo", "$HOME"))
    # The keeper started it directly, without a shell.
    equal(f.run("cat /proc/self/cmdline").stdout, b"cat\0/proc/self/cmdline\0")


@case
def below_full_input_and_time_are_the_rules(f):
    begin(f, "work exec:cat allow\nwork exec:sleep * allow timeout=1\nwork exec:wc -c allow stdin=live\n"
             "work exec:env allow\n")
    got = f.run("cat", stdin=b"secret")
    equal((got.returncode, got.stdout), (0, b""))
    equal(f.run("wc -c", stdin=b"12345").stdout, b"5\n")
    equal(f.run("sleep 1000").returncode, 124)
    got = f.run("env").stdout.decode().split("\n")
    check(any(line.startswith("QVM_REMOTE_PEER=work") for line in got), got)


@case
def an_account_that_is_none_or_bounds_nothing_is_refused_before_start(f):
    begin(f, "work exec:id -u allow user=nobody-of-that-name\nwork exec:id -g allow user=root\n"
             "work exec:true ask user=nobody-of-that-name\n")
    denied(f.run("id -u"), b"there is no user 'nobody-of-that-name' in dom0")
    denied(f.run("id -g"), b"may administer dom0, so it limits nothing")
    denied(f.run("true"), b"there is no user")  # no operator is asked about a command that cannot run
    denied(f.run("--dry-run", "id -u"), b"there is no user")
    kinds = [r["kind"] for r in f.audit()]
    check("REFUSED" in kinds and "START" not in kinds, kinds)


@case
def an_account_that_cannot_be_used_is_refused_with_the_reason(f):
    """This daemon does not run as root, so it cannot confine commands."""
    begin(f, "work exec:id -u allow user=daemon\nwork exec:id -g ask user=root\nwork exec:true allow user=daemon\n"
             "work exec:ls allow\n")
    reason = "dom0 cannot hide its sockets from a command: Operation not permitted"
    denied(f.run("id -u"), reason.encode())
    got = f.dom0("policy", "check", "work", "--", "id", "-u")
    lines = got.stdout.decode().splitlines()
    equal((got.returncode, lines[0]), (126, "verdict: deny"))
    check(any(line.startswith("why: " + reason) for line in lines), lines)
    got = f.dom0("policy", "check", "work", "--", "id", "-g")
    check(got.returncode == 126 and b"limits nothing" in got.stdout, got)
    equal(f.dom0("policy", "check", "work", "--", "ls").returncode, 0)
    said = [line for line in f.dom0("status").stdout.decode().splitlines() if "are refused" in line]
    equal(len(said), 2)
    check(said[0].startswith("policy: commands as 'daemon' are refused (30-test.policy:1 ") and reason in said[0], said)
    check(said[1].startswith("policy: commands as 'root' are refused (30-test.policy:2 "), said)
    rules(f, "work exec:ls allow\nwork level:full allow user=daemon\n")
    check(b"are refused" not in f.dom0("status").stdout, "full access confines nobody")
    rules(f, "work exec:ls allow user=daemon\ndev level:full allow user=daemon\n")
    got = f.dom0("policy", "lint")
    check(got.returncode == 0 and b"confined here, and not by" in got.stdout, got)


@case
def scripts_run_by_their_digest(f):
    text = b"echo one\necho $((1 + 1))\n"
    begin(f, f"work script:sha256:{hashlib.sha256(text).hexdigest()} allow\n")
    path = os.path.join(f.path, "s.sh")
    with open(path, "wb") as s:
        s.write(text)
    equal(f.run("--script", path).stdout, b"one\n2\n")
    denied(f.run("--script", path, "argument"))
    denied(f.run(stdin=text))  # the same bytes as a command line: bash would run them, whatever their #! says
    denied(f.run(text.decode()))
    large = b"#" * 20000 + b"\necho large\n"  # the body follows its header
    rules(f, f"work script:sha256:{hashlib.sha256(large).hexdigest()} allow\n")
    with open(path, "wb") as s:
        s.write(large)
    equal(f.run("--script", path).stdout, b"large\n")
    denied(f.run(stdin=large))
    with open(path, "wb") as s:
        s.write(large[:-1])
    denied(f.run("--script", path))


@case
def a_dry_run_says_that_somebody_would_be_asked(f):
    begin(f, "work * ask\n")
    denied(f.run("--dry-run", "id"), b"would be asked")


@case
def a_broken_file_lets_nothing_new_in(f):
    begin(f)
    p = f.popen("echo up; read x; echo $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"up\n")
    rules(f, "work level:monitor allow\nwork level:ful allow\n", "90-later.policy")
    denied(f.run("true"), b"policy is broken")
    status = f.dom0("status").stdout
    check(b"90-later.policy:2:12: " in status, status)
    check("90-later.policy:2:12: " in f.log(), f.log())
    got = f.dom0("keys")
    check(got.returncode == 1 and b"90-later.policy:2:12: " in got.stderr, got)
    equal(p.communicate(b"still here\n", timeout=HANG)[0], b"still here\n")
    rules(f, None, "90-later.policy")
    equal(f.run("echo back").stdout, b"back\n")
    f.stop()
    rules(f, "nonsense\n", "90-later.policy")
    # The daemon starts, and says at once that it refuses every request.
    told = subprocess.Popen([DAEMON, "--root", f.root, "--transport", "mock", "--plugin-dir", PLUGINS],
                            env=f.env(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work",
                                      QVM_REMOTE_MOCK_SOCKET=None),
                            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    check(b"90-later.policy:1:" in told.stderr.readline(), "said on stderr")
    told.terminate()
    equal(told.wait(HANG), 0)


@case
def policy_that_others_can_write_is_no_policy(f):
    begin(f)
    equal(f.run("true").returncode, 0)
    rules(f, "work level:full allow\n", mode=0o666)
    denied(f.run("true"), b"policy is broken")
    rules(f, "work level:full allow\n")
    equal(f.run("true").returncode, 0)
    os.symlink("30-test.policy", os.path.join(os.path.dirname(level_file(f)), "40-link.policy"))
    f.dom0("authorize", "dev", stdin=KEY.encode())
    denied(f.run("true"), b"policy is broken")


@case
def keys_without_policy_are_refused_until_migrated_once(f):
    begin(f, "")
    denied(f.run("true"), b"migrate")
    check(b"migrate" in f.dom0("status").stdout, "status")
    check("migrate" in f.log(), "log")
    got = f.dom0("migrate")
    check(got.returncode == 0 and b"work: level full" in got.stdout, got)
    equal(f.run("echo in").stdout, b"in\n")
    os.unlink(level_file(f))
    got = f.dom0("migrate")
    check(got.returncode == 0 and b"already" in got.stdout, got)
    check(not os.path.exists(level_file(f)), "what was taken away comes back")


@case
def migrate_does_not_change_qubes_that_have_rules(f):
    begin(f, "work exec:true allow\n")
    equal(f.dom0("migrate").returncode, 0)
    check(not os.path.exists(level_file(f)), "it has rules")


@case
def a_new_key_is_no_new_level(f):
    f.dom0("authorize", "work", "--level", "manage", stdin=KEY.encode())
    got = f.dom0("authorize", "work", stdin=("f" * 64).encode())
    check(got.returncode == 0 and b"stays" in got.stderr and b"IS dom0" not in got.stderr, got)
    check(b" manage " in f.dom0("keys").stdout, "manage")
    f.dom0("authorize", "work", "--level", "deny", stdin=KEY.encode())
    check(b" deny " in f.dom0("keys").stdout, "deny")
    equal(f.dom0("revoke", "work").returncode, 0)
    check(not os.path.exists(level_file(f)), "the level is left behind")


@case
def check_says_what_the_daemon_does(f):
    begin(f, "work level:monitor allow\nwork exec:echo * allow timeout=9\nwork exec:sh ** deny\nwork exec:ls ask\n"
             "@anyvm exec:printf ** allow\n")
    seed = random.randrange(1 << 32)
    r = random.Random(seed)
    words = ["true", "echo", "a", "-n", "uname", "-s", "printf", "x=y", "sh", "-c", "ls", ";", "$HOME", "''"]
    codes = set()
    for _ in range(40):
        line = [r.choice(words) for _ in range(r.randint(1, 3))]
        said = f.dom0("policy", "check", "work", "--", *line)
        # A request that needs an approval would wait now, so use a dry run.
        got = f.run("--dry-run", "--", *line)
        codes.add(said.returncode)
        check((said.returncode == 0) == (b"dom0 refuses" not in got.stderr), (seed, line, said, got))
        if said.returncode:
            equal(got.returncode, 126)
    check({0, 126} <= codes, codes)
    got = f.dom0("policy", "check", "work", "--", "echo", "a")
    equal(got.returncode, 0)
    equal(got.stdout.split(b"\n")[:2], [b"verdict: allow", b"rule: 30-test.policy:2 work exec:echo * allow timeout=9"])
    check(b"timeout: 9 s" in got.stdout and b"runs: without a shell" in got.stdout, got)
    equal(f.dom0("policy", "check", "work", "--", "ls").returncode, 3)
    equal(f.dom0("policy", "check", "--exec", "work", "--", "echo", "a b").returncode, 0)
    equal(f.dom0("policy", "check", "work", "--", "echo", "a b").returncode, 126)
    equal(f.dom0("policy", "check", "--argument", "monitor", "work", "--", "echo", "a").returncode, 126)
    equal(f.dom0("policy", "check", "dev", "--", "true").returncode, 126)
    for bad in ([], ["work"], ["work", "--"], ["wo.rk", "--", "true"], ["work", "dev", "--", "true"]):
        equal(f.dom0("policy", "check", *bad).returncode, 1)


@case
def the_same_words_mean_the_same_to_both(f):
    text = b"#!/bin/sh\necho script\n"
    path = os.path.join(f.path, "s.sh")
    empty = os.path.join(f.path, "empty.sh")
    for name, data in ((path, text), (empty, b" \n")):
        with open(name, "wb") as s:
            s.write(data)
    begin(f, f"work script:sha256:{hashlib.sha256(text).hexdigest()} allow\nwork exec:echo * allow\n"
             "work exec:echo ask\nwork exec:uname allow tty=yes\n")
    rows = [
        (["--", "echo", "a"], 0), (["--", "echo  a"], 0), (["--", " echo", "a "], 0), (["--", "echo", "a b"], 126),
        (["--", "echo"], 3), (["--", ""], 1), (["--", " ", "\t"], 1), (["--", "echo", ""], 3), (["--", "-n"], 126),
        (["--exec", "--", "echo", "a b"], 0), (["--exec", "--", "echo a"], 126), (["--exec", "--", "", "a"], 1),
        (["--exec", "--", "echo", ""], 126), (["--exec", "--", "--", "a"], 126),
        (["--script", path, "--"], 0), (["--script", path, "--", ""], 126), (["--script", path, "--", "a"], 126),
        (["--script", empty, "--"], 1), (["--", text.decode()], 126),
        (["--tty", "--", "echo", "a"], 126), (["--tty", "--", "uname"], 0), (["--tty", "--exec", "--", "uname"], 0),
    ]
    for words, want in rows:
        at = words.index("--")
        said = f.dom0("policy", "check", *words[:at], "work", *words[at:])
        equal((words, said.returncode), (words, want))
        got = f.run("--dry-run", *words, stdin=b"")
        equal((words, got.returncode), (words, 126 if want == 3 else want))
        equal((words, b"would be asked" in got.stderr), (words, want == 3))


@case
def what_is_refused_before_policy_is_the_same_to_both(f):
    begin(f, "work level:full allow\n")

    def both(code, why):
        said, got = f.dom0("policy", "check", "work", "--", "true"), f.run("--dry-run", "true")
        equal((said.returncode, got.returncode), (code, code))
        check(why in said.stdout and why in got.stderr, (said, got))
    both(0, b"")
    equal(f.dom0("panic").returncode, 0)
    both(126, b"an operator in dom0 has stopped everything (panic)")
    equal(f.dom0("resume").returncode, 0)
    write(f, "QVM_REMOTE_VMS=dev\n", "remote.conf")
    both(126, b"dom0 does not serve this qube")
    write(f, None, "remote.conf")
    both(0, b"")


@case
def lint_names_every_mistake(f):
    rules(f, "work level:full allow\nwork exec:ls deny\n")
    got = f.dom0("policy", "lint")
    check(got.returncode == 0 and b"30-test.policy:2:1: this is never reached" in got.stdout, got)
    rules(f, "x\n# fine\ny\n", "10-bad.policy")
    rules(f, "z\n", "not-one.policy~")
    got = f.dom0("policy", "lint")
    equal(got.returncode, 1)
    equal([line.split(b": ")[0].rsplit(b"/", 1)[1] for line in got.stdout.splitlines()],
          [b"10-bad.policy:1:2", b"10-bad.policy:3:2"])


def write(f, text, name="30-test.policy"):
    """Changes a file by hand, without telling the daemon."""
    path = os.path.join(f.root, "etc/qubes", name if name == "remote.conf" else f"remote-policy.d/{name}")
    if text is None:
        os.unlink(path)
        return
    with open(path, "w") as p:
        p.write(text)
    os.chmod(path, 0o600)


@case
def what_takes_rights_away_counts_before_a_reload(f):
    begin(f, "work exec:echo ** allow\nwork exec:cat allow stdin=live\nwork exec:sleep * allow\n"
             "work exec:uname allow\n")
    equal(f.run("echo a").stdout, b"a\n")
    # A line is removed from a file whose size stays the same.
    write(f, "work exec:ecHo ** allow\nwork exec:cat allow stdin=live\nwork exec:sleep * allow\n"
             "work exec:uname allow\n")
    denied(f.run("echo a"), b"policy")
    denied(f.run("--dry-run", "echo a"))
    equal(f.run("uname").stdout, b"Linux\n")
    check("the policy on disk is not the one that was loaded" in f.log(), f.log())
    # Narrower terms.
    write(f, "work exec:cat allow\nwork exec:sleep * allow timeout=1\nwork exec:uname ask\n")
    equal(f.run("cat", stdin=b"secret").stdout, b"")
    equal(f.run("sleep 30").returncode, 124)
    denied(f.run("--dry-run", "uname"), b"would be asked")
    # A new line allows nothing until the reload, and a removed line allows again when it is back.
    write(f, "work level:full allow\n")
    denied(f.run("id"), b"policy")
    equal(f.run("echo a").stdout, b"a\n")
    equal(f.run("cat", stdin=b"x").stdout, b"x")
    write(f, "work exec:echo ** allow\n", "10-first.policy")
    equal(f.run("echo b").stdout, b"b\n")
    write(f, "work exec:echo ** deny\n", "10-first.policy")
    denied(f.run("echo b"), b"policy")
    write(f, None, "10-first.policy")
    equal(f.run("echo b").stdout, b"b\n")
    write(f, None)
    denied(f.run("echo b"), b"policy")
    equal(f.dom0("policy", "check", "work", "--", "echo", "b").returncode, 126)


@case
def a_file_that_is_broken_or_open_to_others_denies_before_a_reload(f):
    good = "work exec:echo ** allow\n"
    begin(f, good)
    directory = os.path.join(f.root, "etc/qubes/remote-policy.d")
    path = os.path.join(directory, "30-test.policy")
    write(f, good + "work level:ful allow\n")
    denied(f.run("echo a"), b"policy is broken")
    status = f.dom0("status").stdout
    check(b"30-test.policy:2:12: " in status, status)
    write(f, good)
    equal(f.run("echo a").stdout, b"a\n")
    for name, mode, safe in ((path, 0o666, 0o600), (directory, 0o777, 0o755)):
        os.chmod(name, mode)
        denied(f.run("echo a"), b"policy is broken")
        os.chmod(name, safe)
        equal(f.run("echo a").stdout, b"a\n")
    os.rename(path, path + "~")
    os.symlink(path + "~", path)
    denied(f.run("echo a"), b"policy is broken")


@case
def qubes_and_limits_of_remote_conf_count_before_a_reload(f):
    begin(f, "work exec:head -c * /dev/zero allow\nwork exec:echo ** allow\n")
    equal(f.run("echo a").stdout, b"a\n")
    write(f, "QVM_REMOTE_VMS=dev\n", "remote.conf")
    denied(f.run("echo a"), b"does not serve")
    write(f, "QVM_REMOTE_VMS=dev work\n", "remote.conf")
    equal(f.run("echo a").stdout, b"a\n")
    write(f, "QVM_REMOTE_MAX_OUTPUT=10\n", "remote.conf")
    equal(len(f.run("head -c 100000 /dev/zero").stdout), 10)
    write(f, "QVM_REMOTE_PROTOCOL=1\n", "remote.conf")
    check(f.run("echo a").returncode in (126, 255), "protocol 2 is not to be used any more")
    write(f, "QVM_REMOTE_MAX_OUTPUT=ten\n", "remote.conf")
    denied(f.run("echo a"), b"policy is broken")
    check(b"QVM_REMOTE_MAX_OUTPUT" in f.dom0("status").stdout, f.dom0("status"))
    write(f, None, "remote.conf")
    equal(f.run("echo a").stdout, b"a\n")


def tagged(f, tags):
    machine = Machine(BUILD, os.path.join(f.path, "m"))
    machine.add("work", agent=False)
    machine.write(tags, "qubes", "work", "tags")
    machine.start_qubesd()
    f.on_stop = machine.stop_qubesd
    return machine


@case
def tags_come_from_qubesd(f):
    machine = tagged(f, "agent\nother\n")
    begin(f, "@tag:agent exec:true allow\n@tag:third exec:uname allow\nwork exec:echo * allow\n",
          QVM_REMOTE_QVM_RUN_QUBESD=machine.file("qubesd.sock"))
    equal(f.run("true").returncode, 0)
    denied(f.run("uname"))
    equal(f.run("echo hi").stdout, b"hi\n")
    check(not any("Exception" in line for line in f.log().split("\n")), f.log())
    # A reload asks again.
    machine.write("third\n", "qubes", "work", "tags")
    f.daemon.send_signal(signal.SIGHUP)
    eventually(lambda: "read again" in f.log(), "a reload")
    denied(f.run("true"))
    equal(f.run("uname").stdout, b"Linux\n")
    got = f.dom0("policy", "check", "work", "--", "uname",
                 env={"QVM_REMOTE_QVM_RUN_QUBESD": machine.file("qubesd.sock")})
    equal(got.returncode, 0)


@case
def unknown_tags_deny_at_the_first_rule_that_could_match(f):
    machine = tagged(f, "agent\n")
    machine.stop_qubesd()
    begin(f, "work exec:uname -s allow\n@tag:agent exec:true allow\nwork level:full allow\n",
          QVM_REMOTE_QVM_RUN_QUBESD=machine.file("qubesd.sock"))
    equal(f.run("uname -s").stdout, b"Linux\n")
    denied(f.run("true"), b"tags")
    equal(f.run("echo hi").stdout, b"hi\n")


@case
def a_key_replaced_while_tags_are_asked_runs_nothing(f):
    program, mark = os.path.join(f.path, "qvm-tags"), os.path.join(f.path, "asked")
    with open(program, "w") as p:
        p.write(f"#!/bin/sh\n[ -e {mark} ] || mkfifo {mark}\ncat {mark}\necho agent\n")
    os.chmod(program, 0o755)
    begin(f, "@tag:agent exec:touch ** allow\n", QVM_REMOTE_QVM_TAGS=program)
    p = f.popen("touch", os.path.join(f.path, "ran"), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    eventually(lambda: os.path.exists(mark), "the question")
    # Another key replaces it: the qube is still served, and requests with the old key do not count.
    equal(f.dom0("authorize", "work", stdin=("f" * 64).encode()).returncode, 0)
    with open(mark, "w"):
        pass  # the file exists, so now the program answers
    err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 126)
    check(b"revoked" in err, err)
    check(not os.path.exists(os.path.join(f.path, "ran")), "it ran")


@case
def an_answer_from_before_a_reload_does_not_count(f):
    """dom0 now asks another program for tags, and the one before still owes an answer."""
    before, now, mark = (os.path.join(f.path, name) for name in ("tags-before", "tags-now", "asked"))
    os.mkfifo(mark)
    for path, text in ((before, f"cat {mark}\necho agent\n"), (now, "echo other\n")):
        with open(path, "w") as p:
            p.write("#!/bin/sh\n" + text)
        os.chmod(path, 0o755)
    rule = "@tag:agent exec:touch ** allow\n"
    os.makedirs(os.path.join(f.root, "etc/qubes"), exist_ok=True)
    write(f, f"QVM_REMOTE_QVM_TAGS={before}\n", "remote.conf")
    begin(f, rule)
    p = f.popen("touch", os.path.join(f.path, "ran"), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    asked = os.open(mark, os.O_WRONLY)  # returns when the program reads
    write(f, f"QVM_REMOTE_QVM_TAGS={now}\n", "remote.conf")
    rules(f, rule)  # and reload
    os.close(asked)
    err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 126)
    check(b"policy" in err, err)
    check(not os.path.exists(os.path.join(f.path, "ran")), "it ran")


@case
def tags_come_from_qvm_tags_where_there_is_no_qubesd(f):
    program = os.path.join(f.path, "qvm-tags")
    with open(program, "w") as p:
        p.write("#!/bin/sh\n[ \"$*\" = work ] && echo agent\n")
    os.chmod(program, 0o755)
    begin(f, "@tag:agent exec:true allow\n", QVM_REMOTE_QVM_TAGS=program)
    equal(f.run("true").returncode, 0)


@case
def signals_of_whoever_started_the_daemon_reach_nobody(f):
    program, said = os.path.join(f.path, "qvm-tags"), os.path.join(f.path, "said")
    with open(program, "w") as p:
        p.write(f"#!/bin/sh\ngrep -E '^Sig(Blk|Ign)' /proc/self/status >{said}\necho agent\n")
    os.chmod(program, 0o755)
    f.under = ["/usr/bin/python3", "-c",
               "import os, signal, sys\n"
               "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
               "for s in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(s, signal.SIG_IGN)\n"
               "os.execv(sys.argv[1], sys.argv[1:])"]
    begin(f, "@tag:agent exec:grep ** allow\n", QVM_REMOTE_QVM_TAGS=program)
    clean = b"SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    equal(f.run("--exec", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status").stdout, clean)
    with open(said, "rb") as s:
        equal(s.read(), clean)
    equal(f.stop(), 0)


main()
