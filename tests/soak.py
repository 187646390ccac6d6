#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The campaigns, each for its share of the time: one row of Markdown each, as in doc/campaigns.md, and
exit code 1 when one found something.

    soak.py BUILD-DIRECTORY [--minutes N | --full] [--only NAME,...] [--fuzzers BUILD-DIRECTORY]

With --full each campaign that is not a fuzzer takes the time that its full counts take.
A NAME is that of a row, or what one begins with: `fuzz` is all targets. What the fuzzers learn and what
they find, and what each campaign said, stays in BUILD-DIRECTORY/soak.
"""

import argparse
import glob
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
parser = argparse.ArgumentParser()
parser.add_argument("build")
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--full", action="store_true", help="the full counts, however long they take; no fuzzers")
parser.add_argument("--only", metavar="NAME,...", default="")
parser.add_argument("--fuzzers", metavar="BUILD", help="one with -Dfuzz=true, if that is another")
args = parser.parse_args()
BUILD = os.path.abspath(args.build)
PLACE = os.path.join(BUILD, "soak")
FUZZERS = os.path.join(os.path.abspath(args.fuzzers or args.build), "tests", "fuzz")
AT_ONCE = os.cpu_count() or 1
running = []


def e2e(name):
    return os.path.join(BUILD, "tests", "e2e", "e2e-" + name)


def script(name, *words):
    return [os.path.join(HERE, "e2e", name), BUILD, *words]


def line(pattern):
    """What a campaign says of itself in one line."""
    def find(said):
        found = re.findall(pattern, said, re.M)
        return found[-1].strip() if found else "broke off"
    return find


def tries(said):
    counts = [int(n) for n in re.findall(r" (\d+) tries, 0 executions", said)]
    return f"{len(counts)} rows, {sum(counts)} tries, 0 executions"


KILLED = "kill_at_any_moment_leaves_a_record_of_all_that_ran"
SWAPPED = "an_entry_that_is_swapped_while_it_waits_runs_as_it_was_shown"
# Name, share of the time, words with the seconds in them, words for the full counts, what its output
# counts. One without a share has full counts alone.
CAMPAIGNS = [
    ("crash", 1, lambda s: [e2e("crash"), f"seconds={s}"], [e2e("crash"), "200"],
     line("^.* results were whole.*$")),
    ("kills", 1, lambda s: [e2e("kills"), f"seconds={s}"], [e2e("kills"), "500"],
     line("^.* results were whole.*$")),
    ("jobs", 1, lambda s: script("jobs_kills.py", "--transport", "mock", "ROUNDS=1000000", f"SECONDS={s}"),
     script("jobs_kills.py", "--transport", "mock", "ROUNDS=300"), line("^ *([0-9]+ rounds.*)$")),
    ("journal", 1, lambda s: script("audit.py", "ROUNDS=1000000", f"SECONDS={s}", KILLED),
     script("audit.py", "ROUNDS=1000", "SECONDS=600", KILLED), line("killed .*$")),
    ("kept", 2, lambda s: script("kept.py", "COUNT=1000000000", f"SECONDS={s}"),
     script("kept.py", "COUNT=3000", "SECONDS=600"), line("^ *([0-9]+ commands.*)$")),
    ("bytes", 1, lambda s: script("every_byte.py", f"SECONDS={s}"), script("every_byte.py", "EVERY=1"),
     line("^ *([0-9]+ faults.*)$")),
    ("hostile", 2, lambda s: [e2e("hostile"), f"seconds={s}"], [e2e("hostile"), "10000"], tries),
    ("swaps", 0, None, ["env", "QVMREMOTE_SWAPS=1000", *script("approvals.py", SWAPPED)], line("^.+$")),
    ("bulk", 0, None, script("bulk.py", "MIB=4096"), line("^ *stalled.*$")),
]
FUZZ_SHARE = 6


class Fuzzer:
    def __init__(self, path):
        self.path = path
        self.target = os.path.basename(path).removeprefix("fuzz-")
        self.name = "fuzz " + self.target
        self.corpus = os.path.join(PLACE, "corpus", self.target)

    def words(self, seconds):
        os.makedirs(self.corpus, exist_ok=True)
        os.makedirs(os.path.join(PLACE, "found"), exist_ok=True)
        return [self.path, f"-max_total_time={seconds}", "-timeout=30", "-print_final_stats=1",
                f"-artifact_prefix={PLACE}/found/{self.target}-", self.corpus,
                os.path.join(HERE, "fuzz", "corpus", self.target)]

    def counts(self, said):
        runs = line(r"^stat::number_of_executed_units: (\d+)$")(said)
        edges = line(r"^#\d+\s.* cov: (\d+) ")(said)
        return f"{runs} runs, {edges} edges, {len(os.listdir(self.corpus))} inputs kept"


def environment():
    plugins = os.path.join(BUILD, "plugins")
    return dict(os.environ, QVMREMOTE_CLIENT=os.path.join(BUILD, "tools/qvm-remote/qvm-remote"),
                QVMREMOTE_DAEMON=os.path.join(BUILD, "tools/qvm-remote-dom0/qvm-remote-dom0"),
                QVMREMOTE_PLUGINS=os.path.join(plugins, "mock"),
                QVMREMOTE_QVM_RUN_PLUGINS=os.path.join(plugins, "qvm-run"),
                QVMREMOTE_STANDINS=os.path.join(BUILD, "tests", "standin"))


def commit():
    git = ["git", "-C", HERE]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], stdout=subprocess.PIPE, text=True)
    return head.stdout.strip() + ("+" if changed.stdout else "")


def run(name, words, counts):
    """True when it found nothing."""
    log = os.path.join(PLACE, name.replace(" ", "-") + ".log")
    begin = time.monotonic()
    with open(log, "w") as out:
        process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT)
        running.append(process)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = code = os.waitstatus_to_exitcode(status)
        running.remove(process)
    took = time.monotonic() - begin
    with open(log, errors="replace") as out:
        said = out.read()
    # What else the machine did shows by the difference.
    length = f"{took:.0f} s, of them {used.ru_utime + used.ru_stime:.0f} on a processor"
    found = "nothing" if code == 0 else f"**exit code {code}**: {os.path.relpath(log, os.path.dirname(HERE))}"
    print(f"| {DATE} | {COMMIT} | {name} | {length} | {counts(said)} | {found} |", flush=True)
    if code != 0:
        print("".join(said.splitlines(True)[-15:]), file=sys.stderr, flush=True)
    return code == 0


def chosen(name):
    return not args.only or any(name == n or name.startswith(n + " ") for n in args.only.split(","))


def stop(*_):
    for process in running:
        process.terminate()
    os._exit(1)


DATE, COMMIT = time.strftime("%Y-%m-%d", time.gmtime()), commit()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
os.makedirs(PLACE, exist_ok=True)
fuzzers = [Fuzzer(p) for p in sorted(glob.glob(os.path.join(FUZZERS, "fuzz-*"))) if os.path.isfile(p)]
fuzzers = [f for f in fuzzers if chosen(f.name) and not args.full]
campaigns = [c for c in CAMPAIGNS if chosen(c[0]) and (c[1] or args.full)]
if not fuzzers and not campaigns:
    sys.exit("soak: nothing of that name; fuzzers are in a build with -Dfuzz=true")
whole = sum(c[1] for c in campaigns) + (FUZZ_SHARE if fuzzers else 0)
second = args.minutes * 60 / max(1, whole)
good = True
if fuzzers:
    each = max(1, int(second * FUZZ_SHARE * min(AT_ONCE, len(fuzzers)) / len(fuzzers)))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        good = all(list(pool.map(lambda f: run(f.name, f.words(each), f.counts), fuzzers)))
for name, share, words, full, counts in campaigns:
    good = run(name, full if args.full else words(max(1, int(second * share))), counts) and good
sys.exit(0 if good else 1)
