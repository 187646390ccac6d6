#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs read: --json of the client. Each object is validated against its schema in doc/schema/, and no
member may come that the schema does not describe.
Usage: machines.py BUILD-DIRECTORY [CASE...]
"""

import base64
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time

from fixture import CLIENT, HANG, KEY, case, check, equal, eventually, main, operator
from policies import begin
from schema import SCHEMAS, USED, validate

LIMIT = 10 << 20
EVERY_BYTE = bytes(range(256))
# Text that a careless writer of JSON gets wrong.
HOSTILE = "\0\x01\b\t\n\f\r\x1b[2J\"\\/</script>\x7f\x80\x9b\u2028\u2029\u202e\ufeff\ufffe\U0010ffff\u00e9\u20ac\U0001f600"


def is_sanitized():
    return b"asan" in subprocess.run(["ldd", CLIENT], stdout=subprocess.PIPE, check=True).stdout


def no_duplicates(pairs):
    check(len(dict(pairs)) == len(pairs), f"a member comes twice: {pairs}")
    return dict(pairs)


def parse(line, schema):
    """The object on a line, if it is valid."""
    text = line.decode("utf-8")
    check(not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", text), text[:500])
    value = json.loads(text, object_pairs_hook=no_duplicates)
    validate(schema, value)
    return value


def one(done, schema):
    """The only object on standard output. Its exit code is that of the program, and its errors are on stderr too."""
    check(done.stdout.endswith(b"\n") and done.stdout.count(b"\n") == 1, f"not one line: {done.stdout[:500]}")
    value = parse(done.stdout[:-1], schema)
    equal(value["exit_code"], done.returncode)
    shown = done.stderr.decode("utf-8", "backslashreplace")
    for message in value["warnings"] + ([value["error"]["message"]] if "error" in value else []):
        check("qvm-remote: " + message + "\n" in shown, f"not on stderr: {message!r}: {shown!r}")
    return value


def lines(done):
    """The lines of --json=lines, and the streams that they carry."""
    check(done.stdout.endswith(b"\n"), done.stdout[-500:])
    values = [parse(line, "run-line") for line in done.stdout[:-1].split(b"\n")]
    equal([v["event"] for v in values].count("end"), 1)
    end = values[-1]
    equal((end["event"], end["exit_code"]), ("end", done.returncode))
    streams = {name: b"".join(content(v) for v in values if v["event"] == name) for name in ("stdout", "stderr")}
    for name, data in streams.items() if "result" in end else ():
        equal(end["result"][name]["bytes"], len(data))
    return values, streams


def content(value):
    return base64.b64decode(value["base64"], validate=True) if "base64" in value else value["text"].encode()


def run(f, *words, schema="run", **more):
    return one(f.run("--json", *words, **more), schema)


def error(value):
    return value["error"]["name"] if "error" in value else None


@case
def a_command(f):
    f.start()
    got = run(f, "echo out; echo err >&2; exit 3")
    equal((got["exit_code"], error(got), got["warnings"]), (3, None, []))
    r = got["result"]
    equal((r["end"], r["status"], r["transport"], r["protocol"], r["may_have_run"]), ("exited", 3, "mock", 2, True))
    equal(r["stdout"], {"text": "out\n", "truncated": False, "bytes": 4})
    equal(r["stderr"], {"text": "err\n", "truncated": False, "bytes": 4})
    check(r["id"] in f.run("history").stdout.decode(), "the ID is not that of the record")
    equal(run(f, "cat", stdin=b"from here")["result"]["stdout"]["text"], "from here")


@case
def how_a_command_ends(f):
    f.start()
    for words, code, end, name in [
        (("true",), 0, "exited", None),
        (("kill -9 $$",), 137, "signalled", "killed_by_signal"),
        (("-t", "1", "sleep 100"), 124, "timed_out", "timed_out"),
        (("--exec", "no-such-program"), 127, "not_found", "program_not_found"),
        (("--exec", "/etc/passwd"), 125, "not_started", "program_not_started"),
    ]:
        got = run(f, *words)
        equal((got["exit_code"], got["result"]["end"], error(got)), (code, end, name))
        values, _ = lines(f.run("--json=lines", *words))
        equal((values[-1]["exit_code"], values[-1]["result"]["end"], error(values[-1])), (code, end, name))
    equal(run(f, "kill -9 $$")["result"]["signal"], 9)


@case
def a_refusal_has_its_reason(f):
    begin(f, "work * deny\n")
    got = run(f, "true")
    equal((got["exit_code"], got["result"]["end"], error(got)), (126, "refused", "denied"))
    equal((got["result"]["may_have_run"], got["result"]["stdout"]["bytes"]), (False, 0))
    f.write_key(KEY[::-1])
    got = run(f, "true")
    equal((got["exit_code"], got["result"]["end"], error(got)), (126, "rejected", "bad_token"))


@case
def what_fails_before_a_command_is_sent(f):
    big = os.path.join(f.path, "big")
    with open(big, "wb") as script:
        script.write(b"x" * (LIMIT // 5))
    for words, env, code, name in [
        (("-t", "0", "true"), {}, 1, "usage"),
        (("--nonsense",), {}, 1, "usage"),
        (("-t",), {}, 1, "usage"),
        (("--json=x", "true"), {}, 1, "usage"),
        (("-L", "1:2", "true"), {}, 1, "usage"),
        (("--tty", "true"), {}, 1, "usage"),
        (("--shell",), {}, 1, "usage"),
        (("true",), {}, 1, "key_missing"),
        ((" ",), {}, 1, "command_empty"),
        (("--exec",), {}, 1, "command_empty"),
        (("--exec", *["x"] * 32769), {}, 1, "too_many_arguments"),
        (("--script", big), {}, 1, "command_too_large"),
        (("--script", "/nowhere"), {}, 1, "bad_script"),
        (("true",), {"QVM_REMOTE_PROTOCOL": "3"}, 1, "bad_settings"),
        (("true",), {"QVM_REMOTE_TRANSPORT": ""}, 1, "bad_settings"),
        (("--transport", "missing", "true"), {}, 1, "key_missing"),
        (("log", "0"), {}, 1, "usage"),
        (("history", "show", "../x"), {}, 1, "bad_command_id"),
        (("history", "show", "no-such"), {}, 1, "no_record"),
        (("history",), {}, 1, "no_record"),
        (("log",), {}, 1, "no_record"),
        (("key",), {}, 1, "usage"),
        (("key", "show"), {}, 1, "key_missing"),
        (("queue", "x"), {}, 1, "usage"),
        (("ping", "x"), {}, 1, "usage"),
        (("ping",), {}, 1, "key_missing"),
    ]:
        got = run(f, *words, env=env)
        check("result" not in got, got)
        equal((words[:2], got["exit_code"], error(got)), (words[:2], code, name))
        values, _ = lines(f.run("--json=lines", *[w for w in words if w != "--json=x"] or words, env=env))
        if "--json=x" not in words:
            equal((len(values), error(values[0])), (1, name))
    f.write_key()
    for words, env, code, name in [
        (("true",), {}, 255, "unreachable"),
        (("ping",), {}, 1, "unreachable"),
        (("status",), {}, 1, "unreachable"),
        (("--transport", "missing", "true"), {}, 1, "transport_unusable"),
        (("--dry-run", "true"), {"QVM_REMOTE_TRANSPORT": "qvm-run", "QVM_REMOTE_PLUGIN_DIR": None,
                                 "QVM_REMOTE_PROTOCOL": "1"}, 1, "needs_protocol_2"),
        (("key", "gen"), {}, 1, "key_exists"),
    ]:
        got = run(f, *words, env=env)
        equal((words[:2], got["exit_code"], error(got)), (words[:2], code, name))
    os.chmod(f.write_key(), 0o644)
    equal(error(run(f, "true")), "key_unusable")
    equal(error(one(f.run("--json", "key", "import", stdin=b"no key"), "key")), "bad_key")


@case
def subcommands(f):
    equal(one(f.run("--json", "--version"), "version")["result"]["version"],
          f.run("--version").stdout.split()[1].decode())
    check(f.run("--json", "--help").stdout == f.run("--help").stdout, "--help is for people")
    made = one(f.run("key", "gen", "--json"), "key")["result"]
    shown = one(f.run("key", "show", "--json"), "key")["result"]
    equal((shown["fingerprint"], shown["file"]), (made["fingerprint"], os.path.join(f.home, ".qvm-remote/auth.key")))
    equal(shown["key"].encode() + b"\n", f.run("key", "show").stdout)
    got = one(f.run("key", "import", KEY, "--json"), "key")
    equal((f.run("key", "show").stdout, len(got["warnings"])), (KEY.encode() + b"\n", 1))
    f.start()
    for words in (("ping",), ("--json", "ping"), ("--json", "ping", "--json")):
        way = one(f.run(*words, *[] if "--json" in words else ["--json"]), "ping")["result"]
        equal((way["transport"], way["protocol"]), ("mock", 2))
    status = one(f.run("status", "--json"), "status")["result"]
    equal((status["qube"], status["level"], status["running"], status["waiting"]), ("work", "full", 0, 0))
    command = f"printf '%b' '{''.join(f'{chr(92)}x{b:02x}' for b in EVERY_BYTE)}'; echo {HOSTILE[1:]!r} >&2; exit 4"
    f.run(command)
    f.run("-t", "1", "sleep 100")
    listed = one(f.run("history", "--json"), "history")["result"]["commands"]
    equal([c["exit_code"] for c in listed], [4, 124])
    equal(one(f.run("history", "1", "--json"), "history")["result"]["commands"], listed[1:])
    entry = one(f.run("history", "show", listed[0]["id"], "--json"), "history-show")["result"]
    equal((entry["id"], entry["exit_code"]), (listed[0]["id"], 4))
    equal((content(entry["command"]), content(entry["stdout"])), (command.encode(), EVERY_BYTE))
    check("base64" in entry["stdout"] and "text" in entry["command"], entry)
    with open(os.path.join(f.home, ".qvm-remote/audit.log"), "ab") as log:
        log.write(b"another program's \xff line\n[2026-11-30T10:00:00] id=x exit=0 duration=5ms cmd=ls\n")
    f.run("queue", "clean")
    got = one(f.run("log", "--json"), "log")["result"]["lines"]
    equal([line.get("event") for line in got],
          ["submit", "done", "submit", "timeout", None, "served", "queue_clean"])
    equal(got[4], {"text": "another program's \u00ff line"})
    equal(len(one(f.run("log", "-n", "2", "--json"), "log")["result"]["lines"]), 2)
    values, _ = lines(f.run("--json=lines", "true"))
    equal(values[-1]["warnings"], [])


@case
def jobs(f):
    f.start()
    made = run(f, "--detach", f"echo out; echo err >&2; printf '\\377'; kill -9 $$")
    equal((made["exit_code"], made["result"]["end"], error(made)), (0, "detached", None))
    ident = made["result"]["id"]
    ended = one(f.run("job", "wait", ident, "--json"), "job")
    equal((ended["exit_code"], ended["result"]["end"], ended["result"]["id"]), (137, "signalled", ident))
    got = one(f.run("--json", "job", "logs", ident), "job")["result"]
    equal((content(got["stdout"]), content(got["stderr"])), (b"out\n\xff", b"err\n"))
    values, streams = lines(f.run("--json=lines", "job", "logs", "-f", ident))
    equal((streams, values[-1]["result"]["end"]), ({"stdout": b"out\n\xff", "stderr": b"err\n"}, "signalled"))
    listed = one(f.run("job", "list", "--json"), "job")["result"]["jobs"]
    equal([(j["id"], j["state"], j["exit_code"], j["tty"]) for j in listed], [(ident, "signalled", 137, False)])
    equal((listed[0]["stdout"], listed[0]["stderr"]), ({"bytes": 5}, {"bytes": 4}))
    for words, name in ((("wait", "no-such"), "no_job"), (("wait", "../x"), "bad_command_id"), (("x",), "usage")):
        equal(error(one(f.run("job", *words, "--json"), "job")), name)
    running = run(f, "--detach", "sleep 100")["result"]["id"]
    check("exit_code" not in [j for j in one(f.run("job", "--json"), "job")["result"]["jobs"] if j["id"] == running][0],
          "an exit code of a job that runs")
    one(f.run("job", "cancel", running, "--json"), "job")


@case
def doctor(f):
    f.start()
    got = one(f.run("doctor", "--json"), "doctor")
    check(got["result"]["findings"], got)
    equal(one(f.run("--json", "doctor"), "doctor")["result"]["state"], got["result"]["state"])
    equal(error(one(f.run("--json", "doctor", "x"), "doctor")), "usage")


@case
def the_queue(f):
    for part, name in (("pending", "a"), ("running", "b\n"), ("results", "c\xff".encode("latin-1"))):
        path = os.path.join(f.home, ".qvm-remote/queue", part).encode()
        os.makedirs(path, 0o700)
        with open(os.path.join(path, name if isinstance(name, bytes) else name.encode()), "w") as entry:
            entry.write("12345")
    equal(one(f.run("queue", "--json"), "queue")["result"], {"pending": 1, "running": 1, "results": 1})
    entries = one(f.run("queue", "debug", "--json"), "queue")["result"]["entries"]
    equal([(e["part"], e["name"], e["bytes"]) for e in entries],
          [("pending", "a", 5), ("running", "b\n", 5), ("results", "c\u00ff", 5)])
    equal(one(f.run("queue", "clean", "--json"), "queue")["result"], {"removed": 3})
    equal(one(f.run("queue", "debug", "--json"), "queue")["result"], {"entries": []})


@case
def hostile_output(f):
    f.start()
    for data, is_text in [
        (HOSTILE.encode(), True), (b"", True), (EVERY_BYTE, False), (b"\xed\xa0\x80", False),  # a lone surrogate
        (b"\xc0\xaf\xf4\x90\x80\x80", False), (b'"}\n{"exit_code":0}\n', True), (b"\xff" * 100_000, False),
        (b"\0" * 100_000, True), (("a" + "\u20ac" * 100_001).encode(), True),
    ]:
        got = run(f, "cat; cat >&2 </dev/null", stdin=data)["result"]["stdout"]
        equal((content(got), "text" in got, got["bytes"], got["truncated"]), (data, is_text, len(data), False))
        values, streams = lines(f.run("--json=lines", "tee /dev/stderr", stdin=data))
        equal((streams["stdout"], streams["stderr"]), (data, data))
        if is_text:
            check(not any("base64" in v for v in values), "text came as base64")


@case
def ten_mebibytes_of_each_stream(f):
    f.start()
    for command, unit, more in (("yes \u20ac | tr -d '\\n'", "\u20ac".encode(), 0), ("yes \u20ac | tr -d '\\n'", "\u20ac".encode(), 1),
                                ("yes x | tr -d '\\n' | tr x '\\377'", b"\xff", 5_000_000)):
        size = LIMIT + more
        got = run(f, f"({command}) 2>/dev/null | head -c {size} | tee /dev/stderr")
        for name in ("stdout", "stderr"):
            stream = got["result"][name]
            data = content(stream)
            equal((stream["bytes"], stream["truncated"]), (size, more > 0))
            # A character that the limit cuts is left out, and the rest stays text.
            check(LIMIT - 3 < len(data) <= LIMIT, len(data))
            equal((data == (unit * LIMIT)[:len(data)], "text" in stream), (True, len(unit) > 1 and more > 0))
    got = one(f.run("history", "show", got["result"]["id"], "--json"), "history-show")["result"]
    equal((got["stdout"]["truncated"], len(content(got["stdout"]))), (True, LIMIT))


@case
def memory_is_bounded(f):
    f.start()
    p = f.popen("--json", "head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE)
    written = peak = 0
    while piece := p.stdout.read(1 << 20):
        written += len(piece)
        with open(f"/proc/{p.pid}/status") as status:
            peak = max([peak] + [int(line.split()[1]) for line in status if line.startswith("VmHWM")])
    equal(p.wait(HANG), 0)
    check(written > 2 * 6 * LIMIT, written)  # each NUL is six characters
    print(f"{peak} KiB for two streams of 10 MiB")
    if not is_sanitized():
        check(0 < peak < 32 << 10, f"{peak} KiB for two streams of 10 MiB")


@case
def lines_come_while_the_command_runs(f):
    f.start()
    p = f.popen("--json=lines", "echo first; cat >&2", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    events = []
    while not events or events[-1]["event"] != "stdout":
        events.append(parse(p.stdout.readline()[:-1], "run-line"))
    equal([e["event"] for e in events], ["sent", "started", "stdout"])
    rest = p.communicate(b"second\n", timeout=HANG)[0]
    events += [parse(line, "run-line") for line in rest[:-1].split(b"\n")]
    equal([e["event"] for e in events][3:], ["stderr", "end"])
    equal(events[0]["id"], events[-1]["result"]["id"])


@case
def lines_carry_every_byte_to_a_slow_reader(f):
    f.start()
    seed = random.randrange(1 << 30)
    text = "".join(random.Random(seed).choices("ab\n\u00e9\u20ac\U0001f600\0", k=1_000_000)).encode()
    p = f.popen("--json=lines", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    threading.Thread(target=lambda: (p.stdin.write(text), p.stdin.close())).start()
    out = b""
    while piece := p.stdout.read(300_000):
        out += piece
        time.sleep(0.02)
    values, streams = lines(subprocess.CompletedProcess([], p.wait(HANG), out, b""))
    equal((streams["stdout"] == text, any("base64" in v for v in values)), (True, False))


@case
def a_question_to_the_operator_is_a_line(f):
    begin(f, "work * ask\n")
    p = f.popen("--json=lines", "true", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    def questions():
        return [json.loads(line) for line in f.dom0("approvals", "list", "--json").stdout.splitlines()]
    eventually(questions, "a question")
    equal(operator(f, "approvals", "deny", str(questions()[0]["serial"])).returncode, 0)
    out, err = p.communicate(timeout=HANG)
    values, _ = lines(subprocess.CompletedProcess([], p.returncode, out, err))
    equal([v["event"] for v in values], ["sent", "approval", "end"])
    equal((values[-1]["exit_code"], error(values[-1])), (126, "approval_denied"))


@case
def signals(f):
    f.start()
    mark = os.path.join(f.path, "mark")
    for form in ("--json", "--json=lines"):
        p = f.popen(form, f"touch {mark}; sleep 100", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE)
        eventually(lambda: os.path.exists(mark), "a start")
        os.unlink(mark)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=HANG)
        done = subprocess.CompletedProcess([], p.returncode, out, err)
        got = one(done, "run") if form == "--json" else lines(done)[0][-1]
        equal((got["exit_code"], got["result"]["forwarded_signal"], got["result"]["end"]), (130, 2, "signalled"))


@case
def standard_output_that_fails(f):
    f.start()
    f.run("echo x")  # for the history
    for words in (("--json", "echo x"), ("--json=lines", "echo x"), ("ping", "--json"), ("history",),
                  ("--help",), ("--version",)):
        reading, writing = os.pipe()
        os.close(reading)
        p = f.popen(*words, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        equal((words, p.communicate(timeout=HANG)[1], p.returncode), (words, b"", 141))
        with open("/dev/full", "wb") as full:
            p = f.popen(*words, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
            err = p.communicate(timeout=HANG)[1]
        equal((words, p.returncode), (words, 255))
        check(b"No space left on device" in err, err)
    # A pipe of the caller's that does not block, and whose reader is slow.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    p = f.popen("--json", "head -c 1000000 /dev/zero", stdin=subprocess.DEVNULL, stdout=writing)
    os.close(writing)
    time.sleep(0.2)
    with os.fdopen(reading, "rb") as out:
        got = out.read()
    equal(p.wait(HANG), 0)
    equal(len(content(parse(got[:-1], "run")["result"]["stdout"])), 1_000_000)


@case
def warnings(f):
    f.start()
    with open(os.path.join(f.home, ".qvm-remote/config"), "w") as config:
        config.write("QVM_REMOTE_TRANSPROT=mock\n")
    got = run(f, "true")
    equal(len(got["warnings"]), 1)
    check("QVM_REMOTE_TRANSPROT is not a setting" in got["warnings"][0], got)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    got = run(f, "true", preexec_fn=small_files)
    equal(("result" in got, len(got["warnings"])), (True, 2))


@case
def protocol_1(f):
    """Over the file queue; this test plays dom0."""
    f.write_key()
    queue = os.path.join(f.home, ".qvm-remote/queue")
    env = {"QVM_REMOTE_TRANSPORT": "qvm-run", "QVM_REMOTE_PROTOCOL": "1", "QVM_REMOTE_PLUGIN_DIR": None,
           "QVM_REMOTE_MOCK_SOCKET": None}

    def dom0():
        pending = os.path.join(queue, "pending")
        entry = lambda: [n for n in os.listdir(pending) if "." not in n] if os.path.isdir(pending) else []
        eventually(entry, "an entry")
        name = entry()[0]
        os.rename(os.path.join(pending, name), os.path.join(queue, "running", name))
        results = os.path.join(queue, "results", name)
        for suffix, text in ((".out", b"a\xff"), (".err", "\u20ac".encode()), (".exit", b"5"), (
                ".meta", f"id={name}\nstarted=2026-11-30T10:00:00\nduration_ms=5\nexit_code=5\n".encode())):
            with open(results + suffix, "wb") as part:
                part.write(text)

    for form in ("--json", "--json=lines"):
        player = threading.Thread(target=dom0)
        player.start()
        done = f.run(form, "echo", env=env)
        player.join()
        if form == "--json":
            r = one(done, "run")["result"]
            equal((content(r["stdout"]), content(r["stderr"])), (b"a\xff", "\u20ac".encode()))
        else:
            values, streams = lines(done)
            r = values[-1]["result"]
            equal(streams, {"stdout": b"a\xff", "stderr": "\u20ac".encode()})
        equal((done.returncode, r["protocol"], r["end"], r["status"]), (5, 1, "exited", 5))


@case
def every_schema_was_used(f):
    if len(sys.argv) == 2:  # all cases ran
        equal(sorted(USED), sorted(name for name in SCHEMAS if not name.startswith("dom0-")))  # those: dom0_json.py


main()
