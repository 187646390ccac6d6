# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command receives and returns: arguments, scripts, streams and the exit code. Cases of common.py."""

import fcntl
import os
import shutil
import subprocess
import sys

from fixture import CLIENT, HANG, case, check, equal, eventually, survivors


@case
def exit_codes(f):
    f.start()
    for words, code, err in [
        (("true",), 0, b""),
        (("exit 3",), 3, b""),
        (("exit", "255"), 255, b""),
        (("kill -9 $$",), 137, b"qvm-remote: the command was killed by signal 9\n"),
        (("no-such-program-anywhere",), 127, None),
        (("--exec", "/no/such/program"), 127, b"qvm-remote: no such program in dom0\n"),
        (("--exec", "/etc/passwd"), 125, b"qvm-remote: dom0 could not start the command: "
                                         b"Permission denied\n"),
        (("-t", "1", "sleep 30"), 124, b"qvm-remote: command timed out after 1s\n"),
        (("--timeout=1", "sleep 30"), 124, b"qvm-remote: command timed out after 1s\n"),
    ]:
        got = f.run(*words)
        check(got.returncode == code, f"{words}: {got}")
        if err is not None:
            equal(got.stderr, err)


@case
def streams_stay_apart_and_whole(f):
    f.start()
    data = os.urandom(3_000_001)
    got = f.run("tee /dev/stderr", stdin=data)
    equal(got.returncode, 0)
    check(got.stdout == data and got.stderr == data, "streams differ")


@case
def output_arrives_as_it_is_written(f):
    f.start()
    p = f.popen("echo first; read x; echo second $x", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    equal(p.stdout.readline(), b"first\n")  # the command still runs and waits for input
    p.stdin.write(b"go\n")
    p.stdin.flush()
    equal(p.stdout.readline(), b"second go\n")
    equal(p.wait(HANG), 0)


@case
def half_close_each_way(f):
    f.start()
    go_on = os.path.join(f.path, "go-on")
    p = f.popen("cat >/dev/null; echo after eof; exec >&-; "
                f"until [ -e {go_on} ]; do sleep 0.05; done; echo late >&2",
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdin.write(b"x")
    p.stdin.close()
    equal(p.stdout.read(), b"after eof\n")  # the end of input is seen while the command runs
    check(p.poll() is None, "the client ended with the first stream")
    open(go_on, "w").close()
    equal(p.stderr.read(), b"late\n")
    equal(p.wait(HANG), 0)


@case
def script_on_stdin(f):
    f.start()
    got = f.run(stdin=b"echo script; exit 5\n")
    equal((got.returncode, got.stdout), (5, b"script\n"))


@case
def script_file_with_arguments(f):
    f.start()
    path = os.path.join(f.path, "s")
    for text, wanted in [
        (b"echo \"$#:$1:$2\"; cat", b"2:a b:-c\nin"),
        (b"#!/usr/bin/env python3\nimport sys; print(len(sys.argv), sys.argv[1:])\n",
         b"3 ['a b', '-c']\n"),
        (b"#" * 200_000 + b"\necho big $1", b"big a b\n"),
    ]:
        with open(path, "wb") as s:
            s.write(text)
        got = f.run("--script", path, "a b", "-c", stdin=b"in")
        equal((got.returncode, got.stdout), (0, wanted))


@case
def a_script_runs_in_the_interpreter_that_it_names(f):
    """Interpreters open their script in different ways: each must read it from the beginning, with its arguments."""
    f.start()
    say = {
        "awk -f": 'BEGIN { print "on " ARGV[1] }', "bash": 'echo "on $1"', "bc -q": 'print "on one\\n"\nquit',
        "busybox sh": 'echo "on $1"', "dash": 'echo "on $1"', "expect": 'puts "on [lindex $argv 0]"',
        "gawk -f": 'BEGIN { print "on " ARGV[1] }', "guile": '!#\n(display (string-append "on " (cadr (command-line))))(newline)',
        "ksh": 'echo "on $1"', "lua": 'print("on " .. arg[1])', "m4": 'on one', "make -f": "one:\n\t@echo on one",
        "mawk -f": 'BEGIN { print "on " ARGV[1] }', "node": 'console.log("on " + process.argv[2])',
        "perl": 'print "on $ARGV[0]\\n"', "php": '<?php echo "on $argv[1]\\n";', "python3": 'import sys; print("on", sys.argv[1])',
        "ruby": 'puts "on #{ARGV[0]}"', "sed -nf": "1s/.*/on one/p", "sh": 'echo "on $1"',
        "tclsh": 'puts "on [lindex $argv 0]"', "zsh": 'echo "on $1"'}
    path, tried = os.path.join(f.path, "s"), []
    for interpreter, text in say.items():
        program = shutil.which(interpreter.split()[0], path="/usr/bin:/bin")
        if not program:
            print(f"not installed, so not tried: {interpreter}")
            continue
        with open(path, "w") as s:
            s.write(f"#!{program}{interpreter[len(interpreter.split()[0]):]}\n{text}\n")
        got = f.run("--script", path, *([path] if interpreter.startswith("sed") else [] if interpreter in ("m4", "bc -q") else ["one"]))
        # m4 prints the first line too, since it is ordinary text for m4.
        equal((interpreter, got.returncode, got.stdout.split(b"\n")[-2:]), (interpreter, 0, [b"on one", b""]))
        tried.append(interpreter)
    check(len(tried) >= 6, f"only {tried}")
    eventually(lambda: not os.listdir(os.path.join(f.root, "var/spool/qvm-remote")), "scripts that ended are gone")
    with open(path, "w") as s:
        s.write("#!/no/such/interpreter -x\n")
    got = f.run("--script", path)
    equal(got.returncode, 127)
    check(b"#!/no/such/interpreter -x" in got.stderr, got.stderr)
    # The next start removes what a killed daemon left.
    f.stop()
    with open(os.path.join(f.root, "var/spool/qvm-remote", "77"), "w") as s:
        s.write("left")
    f.start()
    equal(os.listdir(os.path.join(f.root, "var/spool/qvm-remote")), [])


@case
def exec_passes_arguments_as_they_are(f):
    f.start()
    words = ["a b", "", "*", "$HOME", "'", "\n", "-n", "ü"]
    got = f.run("--exec", "printf", "<%s>", *words)
    equal(got.stdout.decode(), "".join(f"<{w}>" for w in words))


@case
def arguments_are_joined_with_blanks(f):
    f.start()
    equal(f.run("echo", "a", "b;", "echo", "c").stdout, b"a b\nc\n")


@case
def large_commands(f):
    f.start()
    for size in (12 * 1024 - 1, 12 * 1024, 12 * 1024 + 1, 100 * 1024, 100 * 1024 + 1, 1 << 20):
        text = b"echo ok #" + b"x" * (size - 9)
        got = f.run(stdin=text)
        check((got.returncode, got.stdout) == (0, b"ok\n"), f"{size}: {got.stderr}")
    got = f.run(stdin=b"#" * ((1 << 20) + 1))
    equal(got.returncode, 1)
    check(b"1 MiB" in got.stderr, got.stderr)


@case
def stdin_is_not_read_before_dom0_accepts(f):
    f.start(key="f" * 64)  # dom0 refuses this key, so the client must not read stdin
    r, w = os.pipe()
    os.write(w, b"precious")
    os.close(w)
    p = f.popen("cat", stdin=r, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    err = p.communicate(timeout=HANG)[1]
    check(p.returncode == 126, err)
    equal(os.read(r, 100), b"precious")


@case
def no_stdin(f):
    f.start()
    r, w = os.pipe()
    os.write(w, b"precious")
    os.close(w)
    p = f.popen("-n", "cat; echo done", stdin=r, stdout=subprocess.PIPE)
    equal(p.communicate(timeout=HANG)[0], b"done\n")
    equal(os.read(r, 100), b"precious")


@case
def inherited_descriptors_keep_their_flags(f):
    f.start()
    r, w = os.pipe()
    r2, w2 = os.pipe()
    os.close(w)
    before = fcntl.fcntl(r, fcntl.F_GETFL), fcntl.fcntl(w2, fcntl.F_GETFL)
    p = f.popen("seq 10000", stdin=r, stdout=w2)
    out = b""
    while not out.endswith(b"10000\n"):
        out += os.read(r2, 65536)
        equal(fcntl.fcntl(w2, fcntl.F_GETFL), before[1])
    equal(p.wait(HANG), 0)
    equal((fcntl.fcntl(r, fcntl.F_GETFL), fcntl.fcntl(w2, fcntl.F_GETFL)), before)


@case
def closed_standard_descriptors(f):
    f.start()
    got = subprocess.run(["bash", "-c", f"exec {CLIENT} 'echo x; exit 4' <&- >&- 2>&-"], env=f.env(),
                         timeout=HANG)
    equal(got.returncode, 4)


@case
def closed_pipe(f):
    f.start()
    mark = f"closed-pipe-mark-{os.getpid()}"
    got = subprocess.run(["bash", "-c", f"{CLIENT} 'MARK={mark} yes' | head -1; echo ${{PIPESTATUS[0]}}"],
                         env=f.env(), capture_output=True, timeout=HANG)
    equal(got.stdout, b"y\n141\n")
    eventually(lambda: not survivors(mark), "yes ends")


@case
def full_disk(f):
    f.start()
    with open("/dev/full", "wb") as full:
        p = f.popen("echo hello", stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
        err = p.communicate(timeout=HANG)[1]
    equal(p.returncode, 255)
    check(b"No space left" in err, err)
