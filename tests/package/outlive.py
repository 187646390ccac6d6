# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten jobs, and in the middle of them the daemon is restarted, killed or stopped, or its package upgraded. These are
cases of install.py, whose machine has a systemd of its own, the qube `work`, and a daemon that serves it."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import root

UNIT, HOLDER = "qvm-remote-dom0", "qvm-remote-jobs"
JOBS = 10
LINES = 40  # at least, that each job writes after the daemon is another; it writes 20 a second
# A job writes to both streams until the test lets all jobs end: with the old daemon, without one and with the new
# one. Its last line says how much it wrote, and a file how often it ran.
JOB = """echo ran >>/srv/jobs/{name}
n=0
until [ -e /srv/jobs/go ]; do
    n=$((n + 1))
    echo {name}-out-$n
    echo {name}-err-$n >&2
    sleep 0.05
done
echo {name} wrote $n
echo ended >>/srv/jobs/{name}
exit {code}
"""


def check(ok, what):
    if not ok:
        raise AssertionError(what)


def eventually(test, what):
    end = time.monotonic() + root.HANG
    while not (got := test()):
        check(time.monotonic() < end, f"never: {what}")
        time.sleep(0.05)
    return got


def another_daemon(machine, old):
    eventually(lambda: machine.main_pid() not in (old, "0") and machine.state()[0] == "active", "another daemon")


class Jobs:
    """Ten jobs of the qube, each with a name and an exit code of its own."""

    def __init__(self, machine, name, first_code):
        self.machine = machine
        self.names, self.codes = {}, {}  # by ID
        machine.run("mkdir", "-p", "/srv/jobs")
        machine.run("rm", "-f", "/srv/jobs/go")
        for n in range(JOBS):
            script = JOB.format(name=f"{name}-{n}", code=first_code + n)
            machine.root.write(f"/srv/work/home/user/{name}-{n}.sh", script)
            code, said = self.in_work(f"qvm-remote --detach --script {name}-{n}.sh")
            check(code == 0 and said.count("\n") == 1, f"--detach ends with {code}: {said}")
            self.names[said.strip()] = f"{name}-{n}"
            self.codes[said.strip()] = first_code + n

    def in_work(self, line):
        return self.machine.run("/usr/local/bin/into-work", "-c", line, check=False)

    def listed(self):
        """What dom0 says of each."""
        said = json.loads(self.machine.run("qvm-remote-dom0", "--json", "jobs"))
        return {row["id"]: row for row in said["result"]["jobs"] if row["id"] in self.names}

    def await_lines(self, more, before=None):
        """All run, and each has written so many lines more. Returns how many bytes each has written."""
        def written():
            rows = self.listed()
            check(len(rows) == JOBS and {row["state"] for row in rows.values()} == {"running"}, f"not all run: {rows}")
            return {ident: row["stdout"]["bytes"] for ident, row in rows.items()}

        def is_enough():
            now = written()
            return now if all(now[i] >= (before or {}).get(i, 0) + more * len("x-0-out-0\n") for i in now) else None

        return eventually(is_enough, "each writes on")

    def follow(self, pool):
        """Clients of two of them, which stay to the end."""
        return [(ident, pool.submit(self.in_work, f"qvm-remote job {verb} {ident} 2>/dev/null"))
                for ident, verb in zip(self.names, ("wait", "logs -f"))]

    def check_followers(self, followers):
        (waited, by_wait), (read, by_read) = [(ident, follower.result(root.HANG)) for ident, follower in followers]
        check(by_wait == (self.codes[waited], ""), f"job wait ends with {by_wait}")
        check(by_read[0] == self.codes[read], f"job logs -f ends with {by_read[0]}")
        self.check_output(self.names[read], by_read[1])

    def let_end(self):
        self.machine.root.write("/srv/jobs/go", "")

    def await_ends(self):
        for name in self.names.values():
            eventually(lambda path=f"/srv/jobs/{name}": self.machine.root.read(path) == "ran\nended\n", f"{name} ended")

    def check_all(self):
        """Each ran once and ended as it was told, with all its output; START and END are there once; both ends list it."""
        for ident, name in self.names.items():
            got = self.in_work(f"qvm-remote job wait {ident}")
            check(got == (self.codes[ident], ""), f"{name} ended with {got}, not {self.codes[ident]}")
            check(self.machine.root.read(f"/srv/jobs/{name}") == "ran\nended\n", f"{name} ran more or less than once")
            self.in_work(f"qvm-remote job logs {ident} >out 2>err")
            out, err = (self.machine.root.read(f"/srv/work/home/user/{stream}") for stream in ("out", "err"))
            self.check_output(name, out, err)
            in_dom0 = self.machine.run("/bin/sh", "-c", f"qvm-remote-dom0 jobs logs work {ident} 2>/dev/null")
            check(in_dom0 == out, f"dom0 reads other output of {name}: {in_dom0[-200:]!r}")
        rows = self.listed()
        check({ident: (row["qube"], row["state"], row["exit_code"]) for ident, row in rows.items()} ==
              {ident: ("work", "exited", code) for ident, code in self.codes.items()}, f"dom0 lists {rows}")
        code, said = self.in_work("qvm-remote --json job list")
        check(code == 0 and {row["id"] for row in json.loads(said)["result"]["jobs"]} >= set(self.names), said)
        for ident, records in self.records().items():
            check(records == [("START", None), ("END", self.codes[ident])], f"{self.names[ident]}: the records are {records}")
        self.machine.run("qvm-remote-dom0", "audit", "verify")
        left = self.machine.run("find", "/run/qvm-remote/jobs", "-type", "s")
        check(left == "", f"the keepers have ended, and left {left}")

    def records(self):
        out = {ident: [] for ident in self.names}
        for line in self.machine.root.read("/var/log/qvm-remote/audit.jsonl").splitlines():
            record = json.loads(line)
            if record.get("id") in out:
                out[record["id"]].append((record["kind"], record.get("exit")))
        return out

    def check_output(self, name, out, err=None):
        count = int(out.rsplit(" ", 1)[-1])
        wanted = [f"{name}-out-{n}\n" for n in range(1, count + 1)] + [f"{name} wrote {count}\n"]
        check(out == "".join(wanted), f"what {name} wrote is not whole: {out[:60]!r} to {out[-200:]!r}")
        wanted = "".join(f"{name}-err-{n}\n" for n in range(1, count + 1))
        check(err is None or err == wanted, f"the errors of {name} are not whole: {err and err[-200:]!r}")


def start(machine, verb):
    """Starts the daemon's unit. These tests do it more often than systemd lets anybody (five times in ten seconds)."""
    machine.run("systemctl", "reset-failed", UNIT)
    machine.run("systemctl", verb, UNIT)


def in_the_middle(machine, name, first_code, happens):
    """Ten jobs write before and after `happens`, which leads to another daemon."""
    with ThreadPoolExecutor() as pool:
        jobs = Jobs(machine, name, first_code)
        before = jobs.await_lines(1)
        holder = machine.run("systemctl", "show", "-p", "MainPID,InvocationID", HOLDER)
        followers = jobs.follow(pool)
        old = machine.main_pid()
        happens()
        another_daemon(machine, old)
        jobs.await_lines(LINES, before)
        check(not any(follower.done() for _, follower in followers), "the clients stay")
        jobs.let_end()
        jobs.check_followers(followers)
        jobs.check_all()
        check(machine.run("systemctl", "show", "-p", "MainPID,InvocationID", HOLDER) == holder,
              f"{HOLDER} was started again")


def jobs_and_a_restart(machine):
    in_the_middle(machine, "restart", 1, lambda: start(machine, "restart"))


def jobs_and_a_kill(machine):
    """systemd ends what is left in the daemon's group, and starts another daemon."""
    in_the_middle(machine, "kill", 21, lambda: machine.run("kill", "-KILL", machine.main_pid()))


def jobs_that_end_without_a_daemon(machine):
    jobs = Jobs(machine, "stop", 41)
    jobs.await_lines(1)
    machine.run("systemctl", "stop", UNIT)
    jobs.let_end()
    jobs.await_ends()
    start(machine, "start")
    jobs.check_all()


def jobs_and_the_unit_of_their_group(machine):
    """Its process may be killed. When the unit is stopped, jobs end; the daemon finds out, and later finds it again."""
    def detach(command):
        said = machine.in_work("qvm-remote --detach " + command)
        return said.split()[-1], "it ends with dom0's daemon" in said

    def status():
        return machine.run("qvm-remote-dom0", "status")

    ident, is_bound = detach("'sleep 1000'")
    for signal in ("TERM", "KILL"):
        machine.run("systemctl", "start", HOLDER)
        machine.run("systemctl", "kill", "--kill-who=main", "--signal", signal, HOLDER)
        eventually(lambda: machine.run("systemctl", "show", "-p", "SubState", "--value", HOLDER) == "exited\n",
                   f"its process ends by {signal}")
        start(machine, "restart")
        machine.in_work(f"qvm-remote job list | grep '^{ident} *running'")
        check(not is_bound and "they outlive this daemon" in status(), "the job goes on")
        machine.in_work(f"qvm-remote job cancel {ident}")
        machine.run("systemctl", "restart", HOLDER)
        ident, is_bound = detach("'sleep 1000'")  # the daemon is the same, and the group another
    pid = machine.main_pid()
    check(not is_bound, "a job in the new group outlives the daemon")
    machine.run("systemctl", "stop", HOLDER)
    machine.in_work(f"qvm-remote job wait {ident}", wanted=143)
    check("they end with this daemon: " in status(), status())
    ident, is_bound = detach("'sleep 1; exit 7'")
    check(is_bound, "the answer says that this job does not outlive the daemon")
    machine.in_work(f"qvm-remote job wait {ident}", wanted=7)
    machine.run("systemctl", "start", HOLDER)
    check("they outlive this daemon" in status(), status())
    ident, is_bound = detach("'sleep 1; exit 8'")
    check(not is_bound, "this one does")
    check(machine.main_pid() == pid, "all of that is the same daemon")
    start(machine, "restart")
    machine.in_work(f"qvm-remote job wait {ident}", wanted=8)


def upgrade(machine, package, install):
    """install() installs `package`, whose version is higher by .1, and its scripts restart the daemon."""
    def version():
        return machine.run("dpkg-query", "-W", "-f", "${Version}", UNIT)

    had = version()
    install("/srv/" + package)
    check(version() == had + ".1", f"the version is {version()}")
    check(machine.run("dpkg", "--audit") == "", "dpkg has all in order")


def jobs_and_an_upgrade(machine):
    def by_dpkg(path):
        machine.run("dpkg", "-i", path)

    in_the_middle(machine, "upgrade", 61, lambda: upgrade(machine, "newer-1.deb", by_dpkg))


def an_upgrade_that_is_a_job(machine):
    """It goes on when it has the daemon restarted, and the new daemon knows how it ended."""
    def by_a_job(path):
        ident = machine.in_work(f"qvm-remote --detach dpkg -i {path}").strip()
        machine.in_work(f"qvm-remote job wait {ident}")

    old = machine.main_pid()
    upgrade(machine, "newer-2.deb", by_a_job)
    another_daemon(machine, old)


def a_reboot_ends_jobs(machine):
    """They end by systemd's signal, and the daemon of the next boot says so, once for each. If the keeper was killed
    before its job had ended, nobody knows the outcome."""
    jobs = Jobs(machine, "reboot", 81)
    jobs.await_lines(1)
    machine.reboot()
    rows = jobs.listed()
    check(len(rows) == JOBS and {row["state"] for row in rows.values()} <= {"signalled", "unknown"}, f"after a boot: {rows}")
    for ident, records in jobs.records().items():
        check([kind for kind, _ in records] == ["START", "END"], f"{jobs.names[ident]}: the records are {records}")


CASES = (jobs_and_a_restart, jobs_and_a_kill, jobs_that_end_without_a_daemon,
         jobs_and_the_unit_of_their_group, jobs_and_an_upgrade, an_upgrade_that_is_a_job, a_reboot_ends_jobs)
