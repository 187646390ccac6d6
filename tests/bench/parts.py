# SPDX-License-Identifier: GPL-2.0-or-later
"""Speed and size: one command after the other, many at once, much data, much history."""

import hashlib
import json
import os
import sqlite3
import statistics
import subprocess
import time

from houses import House, MockHouse, memory
from rows import (GIB, HANG, ROUNDS, args, failures_row, fdatasync, good, launch, memory_row,
                  ms, program, ratio_row, row, slowness)

QUBES = [f"q{n}" for n in range(10)]


def bench_protocol(_):
    seconds = "0.3" if args.quick else "1"
    done = subprocess.run([program("protocol"), seconds], stdout=subprocess.PIPE, check=True,
                          timeout=HANG)
    for name, value in json.loads(done.stdout).items():
        if "64 KiB" in name:
            row(name, value["mb_s"], "MB/s")
        else:
            row(name, value["per_s"], "/s", note=f"{1e6 / value['per_s']:.2f} µs each")


def bench_start(state):
    sync, allowance = fdatasync()
    row("fdatasync on the audit's disk", sync, "ms", note="what one durable START costs at least")
    with House(state.programs, "start", ["work"]) as house:
        spot = os.path.join(house.path, "files")
        os.mkdir(spot)
        created = launch("--create", spot, "--count", 50)
        row("creating a file where the history is", ms(created), "ms",
            note="a command's record takes six" + (
                "; slow: ext4 passes over what was deleted there in the last minutes, and looks at "
                "each" if ms(created) > 0.1 else ""))
        words = ["--count", ROUNDS, "--warmup", 10, "--", "bash", "-c", "true",
                 "--", *house.client("work", "--version"), "--", *house.client("work", "true")]
        if not state.ssh.why:
            words += ["--", *state.ssh.command("true")]
        done = launch(*words, env=house.env())
    bash, version, whole = (r["median_us"] for r in done["rows"][:3])
    row("bash -c true", bash / 1000, "ms", note=f"{ROUNDS} interleaved")
    ratio_row("qvm-remote --version / bash", version, bash, 2.0)
    note = f"aim 3.0; quartiles {done['rows'][2]['q1_us'] / 1000:.2f}–" \
           f"{done['rows'][2]['q3_us'] / 1000:.2f} ms"
    if allowance:
        note += "; one fdatasync allowed"
    ratio_row("qvm-remote true / bash", whole, bash, 3.5, note, allowance)
    if state.ssh.why:
        row("qvm-remote true / kept ssh", 0.0, "×", "≤ 0.7", False, state.ssh.why)
    else:
        ratio_row("qvm-remote true / kept ssh", whole, done["rows"][3]["median_us"], 0.7,
                  "aim 0.6; " + state.ssh.note, allowance)
    failures_row(done)


def bench_embedded(state):
    count = 200 if args.quick else 1000
    with House(state.programs, "embedded", ["work"]) as house:
        done = subprocess.run([program("embedded"), house.agent_socket("work"), house.key("work"),
                               str(count)], stdout=subprocess.PIPE, check=True, env=house.env(),
                              timeout=HANG)
    result = json.loads(done.stdout)
    _, allowance = fdatasync()
    ratio_row("embedded client, session kept / bash", result["ours"]["median_us"],
              result["bash"]["median_us"], 2.0, f"{count} in a row", allowance)
    if result["failed"]:
        row("commands that failed", result["failed"], "", "0", False)


def bench_many(state):
    slower, why = slowness()
    with House(state.programs, "many", QUBES) as house:
        clients = [word for qube in QUBES for word in ("--", *house.client(qube, "true"))]
        one = ["--", *house.client(QUBES[0], "true")]
        for where, words in (("in 10 qubes", clients), ("in one qube", one)):
            took, floor, failed = [], [], 0
            for _ in range(3 if args.quick else 9):
                done = launch("--parallel", 40, "--count", 40, *words, env=house.env())
                took.append(done["wall_us"] / 1e6)
                failed += sum(r["failed"] for r in done["rows"])
                bash = launch("--parallel", 40, "--count", 40, "--", "bash", "-c", "true")
                floor.append(bash["wall_us"] / 1e6)
            wall = statistics.median(took)
            row(f"40 clients at once, {where}", wall, "s", f"≤ 0.2 × {slower:.1f}",
                wall <= 0.2 * slower and failed == 0,
                f"0.2 s {why}; median of {len(took)}; {failed} failed; bash the same way: "
                f"{statistics.median(floor):.3f} s")
        count = 300 if args.quick else 1000
        done = launch("--parallel", 10, "--count", count, *clients, env=house.env())
    bash = launch("--parallel", 10, "--count", count, "--", "bash", "-c", "true")
    rate = count / done["wall_us"] * 1e6
    row(f"{count} clients, 10 qubes, 10 in parallel", rate, "/s", f"≥ 300 / {slower:.1f}",
        rate >= 300 / slower and good(done),
        f"300 {why}; bash the same way: {count / bash['wall_us'] * 1e6:.0f}/s")


def bulk_words(client):
    """The number of bytes, and for each direction: its name, our words, the client's place in the pipe, and a
    function that makes the words for ssh."""
    size = GIB // 8 if args.quick else GIB
    source = ["head", "-c", str(size), "/dev/zero"]
    return size, (
        ("stdout", [*client(" ".join(source)), "|", "cat"], 0,
         lambda ssh: [*ssh.command(*source), "|", "cat"]),
        ("stdin", [*source, "|", *client("cat >/dev/null")], 1,
         lambda ssh: [*source, "|", *ssh.command("cat >/dev/null")]))


def bench_bulk(state):
    ssh = state.ssh
    with House(state.programs, "bulk", ["work"]) as house:
        size, ways = bulk_words(lambda *words: house.client("work", *words))
        for name, ours, stage, theirs in ways:
            words = ["--count", 3 if args.quick else 5, "--warmup", 1, "--", *ours]
            if not ssh.why:
                words += ["--", *theirs(ssh)]
            done = launch(*words, env=house.env())
            rate = size / done["rows"][0]["median_us"]
            what = f"{size >> 20} MiB of {name}, of ssh's rate"
            if ssh.why:
                row(what, 0.0, "×", "≥ 1.5", False, f"{rate:.0f} MB/s; {ssh.why}")
            else:
                other = size / done["rows"][1]["median_us"]
                row(what, rate / other, "×", "≥ 1.5", rate / other >= 1.5 and good(done),
                    f"{rate:.0f} / {other:.0f} MB/s; {ssh.note}")
            memory_row(f"peak memory, {name}: client", done["rows"][0]["peak_kib"][stage])
            agent = memory(house.agent_pid("work"), "status", "VmHWM")
            memory_row(f"peak memory, {name}: agent", agent)
            memory_row(f"peak memory, {name}: daemon", house.peak_kib())


def bench_mock(state):
    """What the mock transport itself costs: only a socket is between client and daemon."""
    with MockHouse(state.programs, "mock") as house:
        done = launch("--count", ROUNDS, "--warmup", 10, "--", "bash", "-c", "true", "--",
                      *house.client("work", "true"), env=house.env())
        bash, ours = done["rows"]
        row("over mock: qvm-remote true / bash", ours["median_us"] / bash["median_us"], "×",
            note=f"{ms(ours):.2f} ms / {ms(bash):.2f} ms; it loads its plug-in")
        failures_row(done)
        size, ways = bulk_words(lambda *words: house.client("work", *words))
        for name, ours, stage, _ in ways:
            done = launch("--count", 1 if args.quick else 3, "--warmup", 1, "--", *ours,
                          env=house.env())
            row(f"over mock: {size >> 20} MiB of {name}", size / done["rows"][0]["median_us"], "MB/s")
            memory_row(f"over mock: peak memory, {name}: client",
                       done["rows"][0]["peak_kib"][stage])
            memory_row(f"over mock: peak memory, {name}: daemon", house.peak_kib())
            failures_row(done)


def bench_protocol1(state):
    """A qube without our agent, which the shell program serves, compared with one that has the agent."""
    rounds = 20 if args.quick else 60
    with House(state.programs, "protocol1", ["work", "old"], {"old": None}) as house:
        old = house.client("old", "true")
        launch("--count", 1, "--", *old, env=house.env())  # after this the shell program is running
        done = launch("--count", rounds, "--warmup", 2, "--", *house.client("work", "true"), "--",
                      *old, env=house.env())
    new, old = done["rows"]
    row("protocol 1, through the shell program", ms(old), "ms", "≤ 300", ms(old) <= 300,
        f"protocol 2 beside it: {ms(new):.2f} ms; at most {old['max_us'] / 1000:.0f} ms; it looks "
        "every 250 ms")
    failures_row(done)


def fill_history(house, days, per_day):
    """Writes records of `days` days up to now, with `per_day` commands each, to audit.log and history/."""
    base = os.path.join(house.home("work"), ".qvm-remote")
    entries = os.path.join(base, "history")
    os.mkdir(entries, 0o700)
    # Say that pruning was done just now, so that the agent has nothing to do.
    with open(os.open(os.path.join(entries, ".pruned"), os.O_WRONLY | os.O_CREAT, 0o600), "w"):
        pass
    names = {"command": "true", "out": "", "err": "", "exit": "0",
             "meta": "id=x\nstarted=2026-01-01T00:00:00\nduration_ms=3\nexit_code=0\n"}
    now = time.time()
    with open(os.open(os.path.join(base, "audit.log"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as log:
        for day in range(days, 0, -1):
            date = time.strftime("%Y-%m-%d", time.gmtime(now - day * 86400))
            where = os.path.join(entries, date)
            os.mkdir(where, 0o700)
            for name, text in names.items():
                with open(os.path.join(where, "." + name), "w") as f:
                    f.write(text)
            for n in range(per_day):
                id_ = f"{date.replace('-', '')}-000000-1-{n:08x}"
                log.write(f"[{date}T00:00:00] SUBMIT id={id_} size=4B cmd=true\n"
                          f"[{date}T00:00:00] DONE id={id_} exit=0\n")
                entry = os.path.join(where, id_)
                os.mkdir(entry, 0o700)
                for name in names:  # one inode for a day, since this does not measure the disk
                    os.link(os.path.join(where, "." + name), os.path.join(entry, name))


def fill_ids(house, count):
    """Makes `count` remembered IDs: their START lines, and the index that the daemon would have."""
    house.start()  # makes the tables
    house.stop()
    audit = os.path.join(house.root, "var/log/qvm-remote/audit.jsonl")
    subprocess.run([program("protocol"), "--audit", audit, str(count)], check=True)
    index = sqlite3.connect(os.path.join(house.root, "var/lib/qvm-remote/ids.sqlite"))
    expires = int(time.time()) + 72 * 3600
    hashes = sorted(hashlib.sha256(b"work\0" + b"20260102-030405-77-%08x" % n).digest()[:16]
                    for n in range(count))
    index.execute("DELETE FROM ids")
    index.executemany("INSERT INTO ids VALUES(?, ?)", ((h, expires) for h in hashes))
    index.execute("INSERT OR REPLACE INTO upto VALUES(1, ?, ?)",
                  (os.stat(audit).st_ino, os.path.getsize(audit)))
    index.commit()
    index.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    index.close()


def bench_history(state):
    days, ids = (10, 100_000) if args.quick else (100, 1_000_000)
    small = House(state.programs, "small", ["work"])
    large = House(state.programs, "large", ["work"])
    fill_history(small, 1, 10)
    fill_ids(small, 10)
    fill_history(large, days, 1000)
    fill_ids(large, ids)
    label = f"{days * 1000} in the history and {ids} IDs, to 10 of each: "
    small.machine.start_qubesd()
    large.machine.start_qubesd()
    started = launch("--ready", "--count", ROUNDS // 4, "--warmup", 2, "--", *small.daemon_words(),
                     "--", *large.daemon_words(), env=small.env())
    small.machine.stop_qubesd()
    large.machine.stop_qubesd()
    with small, large:
        done = launch("--count", ROUNDS, "--warmup", 10, "--", *small.client("work", "true"), "--",
                      *large.client("work", "true"), env=small.env())
        listed = launch("--count", ROUNDS, "--warmup", 10, "--",
                        *small.client("work", "history", "10"), "--",
                        *large.client("work", "history", "10"), env=small.env())
        peak = large.peak_kib()
    for what, result in (("client", done), ("daemon start", started), ("history 10", listed)):
        ratio_row(label + what, result["rows"][1]["median_us"], result["rows"][0]["median_us"], 1.2)
        failures_row(result)
    memory_row("peak memory with as many: daemon", peak)
