# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys and administration. Cases of cli.py."""

import glob
import json
import os
import re
import sqlite3
import stat
import subprocess
import time

from fixture import DAEMON, HANG, KEY, PLUGINS, case, check, equal, eventually


@case
def nothing_set_up(f):
    got = f.run("--transport", "mock", "echo out; echo err >&2; exit 7",
                env=dict(QVM_REMOTE_MOCK_SOCKET=None, QVM_REMOTE_TRANSPORT=None))
    equal((got.returncode, got.stdout, got.stderr), (7, b"out\n", b"err\n"))


@case
def nothing_set_up_leaves_nothing(f):
    before = set(glob.glob("/tmp/qvm-remote-??????"))
    f.run("--transport", "mock", "true", env=dict(QVM_REMOTE_MOCK_SOCKET=None))
    # Directories of other tests may be among these; they disappear too.
    new = set(glob.glob("/tmp/qvm-remote-??????")) - before
    eventually(lambda: not any(map(os.path.exists, new)), f"one of {new} to go")


@case
def key_gen_show_import(f):
    got = f.run("key", "gen")
    equal(got.returncode, 0)
    path = os.path.join(f.home, ".qvm-remote", "auth.key")
    equal(stat.S_IMODE(os.stat(path).st_mode), 0o600)
    equal(stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode), 0o700)
    with open(path) as k:
        digits = k.read().strip()
    check(re.fullmatch("[0-9a-f]{64}", digits), digits)
    check(digits.encode() not in got.stdout + got.stderr, "key gen prints the key")
    equal(f.run("key", "show").stdout.decode().strip(), digits)
    again = f.run("key", "gen")
    equal(again.returncode, 1)
    check(b"already" in again.stderr, again.stderr)
    mixed = "ABCDEF0123456789abcdef0123456789" * 2
    got = f.run("key", "import", stdin=f"  {mixed}\n".encode())
    equal(got.returncode, 0)
    equal(f.run("key", "show").stdout.decode().strip(), mixed)  # kept as typed
    want = subprocess.run(["openssl", "dgst", "-sha256", "-binary"], input=mixed.encode(),
                          capture_output=True).stdout
    b64 = subprocess.run(["base64"], input=want, capture_output=True).stdout.decode().strip()
    equal(got.stdout.decode().strip(), "SHA256:" + b64.rstrip("="))


BAD_KEYS = ["", "0" * 63, "0" * 65, "0x" + "0" * 62, "+" + "0" * 63, "-" + "0" * 63,
            "0" * 31 + "_" + "0" * 32, "\u0661" * 32, "g" * 64, "0" * 32 + " " + "0" * 32,
            "0" * 32 + "\n" + "0" * 32]


@case
def bad_keys_are_refused_everywhere(f):
    for bad in BAD_KEYS:
        got = f.run("key", "import", stdin=bad.encode())
        check(got.returncode == 1 and b"64 digits" in got.stderr, f"{bad!r}: {got}")
        equal(got.stderr.count(b"\n"), 1)
        got = f.dom0("authorize", "work", stdin=bad.encode())
        check(got.returncode == 1 and b"64 digits" in got.stderr, f"{bad!r}: {got}")
        check(not os.path.exists(os.path.join(f.root, "etc/qubes/remote.d/work.key")), bad)
        f.write_key(bad)
        got = f.run("true")
        check(got.returncode == 1 and b"64 digits" in got.stderr, f"{bad!r}: {got}")


@case
def key_files_that_are_not_safe(f):
    path = f.write_key(mode=0o640)
    got = f.run("true")
    check(got.returncode == 1 and b"chmod 600" in got.stderr, got)
    os.rename(path, path + ".real")
    os.chmod(path + ".real", 0o600)
    os.symlink(path + ".real", path)
    got = f.run("true")
    check(got.returncode == 1 and b"symbolic link" in got.stderr, got)
    os.unlink(path)
    got = f.run("true")
    check(got.returncode == 1 and path.encode() in got.stderr and b"key gen" in got.stderr, got)


@case
def loose_keys_in_dom0_refuse(f):
    f.start()
    key = os.path.join(f.root, "etc/qubes/remote.d/work.key")
    equal(stat.S_IMODE(os.stat(key).st_mode), 0o600)
    equal(f.run("true").returncode, 0)
    os.chmod(key, 0o640)
    equal(f.run("true").returncode, 126)
    check("chmod" in f.log(), "the log does not say how to mend it")
    os.chmod(key, 0o600)
    equal(f.run("true").returncode, 0)
    os.rename(key, key + ".bak")
    os.symlink(key + ".bak", key)
    equal(f.run("true").returncode, 126)
    os.unlink(key)
    equal(f.run("true").returncode, 126)
    check("AUTH-DENY" in f.log(), f.log())


@case
def authorize_names(f):
    for bad in ("../../x", "a/b", "", "-x", "dom0", "none", "default", "sys-net-dm", "1abc",
                "x" * 32, "a b", "a\nb", "\x1b[31m"):
        got = f.dom0("authorize", "--", bad, stdin=KEY.encode())
        check(got.returncode == 1, f"{bad!r}: {got}")
        check(b"\x1b" not in got.stderr, "an escape sequence reached the terminal")
    equal(os.path.exists(os.path.join(f.root, "etc/qubes/remote.d")), False)
    equal(f.dom0("authorize", "x" * 31, stdin=KEY.encode()).returncode, 0)


@case
def authorize_keys_revoke(f):
    got = f.dom0("authorize", "work", "--level", "root", stdin=KEY.encode())
    check(got.returncode == 1 and b"level" in got.stderr, got)
    got = f.dom0("authorize", "work", stdin=KEY.encode())
    equal(got.returncode, 0)
    check(b"IS dom0" in got.stderr, "no warning")
    fingerprint = got.stdout.split()[1].decode()
    f.write_key()
    check(fingerprint.encode() in f.run("-v", "key", "show").stderr, "two fingerprints")
    listed = json.loads(f.dom0("keys", "--json").stdout)
    equal([(k["qube"], k["fingerprint"], k["level"]) for k in listed], [("work", fingerprint, "full")])
    check(KEY[:16].encode() not in f.dom0("keys").stdout, "digits of the key are shown")
    got = f.dom0("authorize", "dev", KEY)
    check(got.returncode == 0 and b"list of processes" in got.stderr, got)
    equal(f.dom0("revoke", "work").returncode, 0)
    got = f.dom0("revoke", "work")
    check(got.returncode == 1 and b"no key" in got.stderr, got)
    equal([k["qube"] for k in json.loads(f.dom0("keys", "--json").stdout)], ["dev"])


@case
def revoke_while_start_is_written(f):
    f.start()
    ran = os.path.join(f.path, "ran")
    # Lock the index of IDs: after the START of the first command its writer waits for up to 5 s,
    # which delays the START of the second command.
    for _ in range(20):
        index = sqlite3.connect(os.path.join(f.root, "var/lib/qvm-remote/ids.sqlite"),
                                isolation_level=None)
        index.execute("BEGIN IMMEDIATE")
        begin = time.monotonic()
        equal(f.run("true").returncode, 0)
        p = f.popen(f"touch {ran}", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        eventually(lambda: b"running=1" in f.dom0("status").stdout or p.poll() is not None, "a slot")
        equal(f.dom0("revoke", "work").returncode, 0)
        in_time = time.monotonic() - begin < 4.5
        index.close()
        err = p.communicate(timeout=HANG)[1]
        if in_time:
            break
        # The machine was too slow, so nothing was tested: try again.
        if os.path.exists(ran):
            os.unlink(ran)
        equal(f.dom0("authorize", "work", stdin=KEY.encode()).returncode, 0)
    check(p.returncode == 126 and b"revoked" in err, (p.returncode, err))
    check(not os.path.exists(ran), "it ran after the revocation")
    equal([r["cause"] for r in f.audit() if r["kind"] == "END"][-1], "not-run")


@case
def one_daemon_at_a_time(f):
    f.start()
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS,
                 env=dict(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work"))
    check(got.returncode == 1 and b"another" in got.stderr, got)


@case
def roots_that_are_not_safe(f):
    os.chmod(f.root, 0o755)
    got = f.dom0("keys")
    check(got.returncode == 1 and b"chmod 700" in got.stderr, got)
    for bad in ("relative", "/", "/nowhere/at/all"):
        equal(f.run("--root", bad, "keys", program=DAEMON).returncode, 1)


@case
def mock_is_refused_beside_real_files(f):
    got = f.run("--transport", "mock", "--plugin-dir", PLUGINS, program=DAEMON)
    check(got.returncode == 1 and b"mock" in got.stderr and b"--root" in got.stderr, got)


@case
def only_the_listed_qubes_are_served(f):
    f.start("--vm", "dev")
    got = f.run("true")
    check(got.returncode == 126 and b"dom0 refuses: denied by policy" in got.stderr, got)
    check("work has a key and is not served" in f.log(), f.log())
    f.stop()
    f.start("--vm", "work")
    equal(f.run("true").returncode, 0)
    f.stop()
    for bad, word in (("dom0", b"not a qube name"), ("../x", b"not a qube name"), ("", b"'--vm' has an empty value")):
        got = f.dom0("--vm", bad, "--transport", "mock", "--plugin-dir", PLUGINS)
        check(got.returncode == 1 and word in got.stderr, got)
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    with open(conf, "w") as c:
        c.write('QVM_REMOTE_VMS="sys-net-dm"\n')  # a list without a valid name does not mean all qubes
    os.chmod(conf, 0o600)
    f.start()
    equal(f.run("true").returncode, 126)


@case
def once(f):
    f.start("--once")
    equal(f.run("exit 9").returncode, 9)
    equal(f.daemon.wait(HANG), 0)
    f.daemon = None
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS, "--once", "--wait", "1",
                 env=dict(QVM_REMOTE_MOCK_DIR=f.root, QVM_REMOTE_MOCK_PEERS="work"))
    equal(got.returncode, 1)


@case
def enable_asks(f):
    fake = os.path.join(f.path, "bin")
    os.mkdir(fake)
    with open(os.path.join(fake, "systemctl"), "w") as s:
        s.write(f"#!/bin/sh\necho \"$@\" >>{f.path}/systemctl.log\n")
    os.chmod(os.path.join(fake, "systemctl"), 0o755)
    env = dict(PATH=fake + ":" + os.environ["PATH"])
    for answer, code in ((b"", 1), (b"no\n", 1), (b"y\n", 1), (b"yes\n", 0)):
        got = f.dom0("enable", stdin=answer, env=env)
        check(got.returncode == code and b"IS dom0" in got.stderr, got)
    equal(f.dom0("disable", env=env).returncode, 0)
    with open(f.path + "/systemctl.log") as s:
        equal(s.read(), f"--root={f.root} enable qvm-remote-dom0.service\n"
                        f"--root={f.root} disable qvm-remote-dom0.service\n")


@case
def bad_configuration(f):
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    os.makedirs(os.path.dirname(conf), 0o700)
    for text, wanted in (("A=1\nnonsense\n", b"remote.conf:2"), ('X="open\n', b"remote.conf:1")):
        with open(conf, "w") as c:
            c.write(text)
        os.chmod(conf, 0o600)
        got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS)
        check(got.returncode == 1 and wanted in got.stderr, got)
    os.chmod(conf, 0o666)
    got = f.dom0("--transport", "mock", "--plugin-dir", PLUGINS)
    check(got.returncode == 1 and b"chmod" in got.stderr, got)


@case
def good_configuration(f):
    conf = os.path.join(f.root, "etc/qubes/remote.conf")
    os.makedirs(os.path.dirname(conf), 0o700)
    with open(conf, "w") as c:
        c.write("# comment\r\nQVM_REMOTE_VMS = 'work ../x'\r\nQVM_REMOTE_NONSENSE=1\r\n"
                "QVM_REMOTE_TRANSPORT=other\r\nQVM_REMOTE_TRANSPORT=mock")
    os.chmod(conf, 0o600)
    f.start()
    equal(f.run("echo hello").stdout, b"hello\n")
    check("QVM_REMOTE_NONSENSE" in f.log() and "../x" in f.log(), f.log())
