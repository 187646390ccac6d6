#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the golden vectors of both protocols, from doc/PROTOCOL.md alone.

Shares nothing with the C++ code: another language, another HMAC (the standard library's), GMAC by the
openssl command. Without an argument it rewrites the files beside it; with --check it compares and
exits 1 where they differ.

Each line of a file is `NAME = HEX`; '#' begins a comment.
"""

import base64
import hashlib
import hmac
import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def gmac(key, nonce, data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        out = subprocess.run(
            ["openssl", "mac", "-cipher", "AES-256-GCM", "-macopt", "hexkey:" + key.hex(),
             "-macopt", "hexiv:" + nonce.hex(), "-in", file.name, "GMAC"],
            check=True, stdout=subprocess.PIPE)
    return bytes.fromhex(out.stdout.decode().strip())


# Frames: name, number, tagged. The order of the numbers is checked against frame.hpp by
# tests/protocol_doc.py.
FRAMES = {
    "hello": (1, False), "open": (2, False), "challenge": (3, False), "request": (4, False),
    "body": (5, True), "pending": (6, True), "accepted": (7, True), "refused": (8, True),
    "rejected": (9, False), "stdin_data": (10, True), "stdin_eof": (11, True),
    "stdout_data": (12, True), "stderr_data": (13, True), "stdout_eof": (14, True),
    "stderr_eof": (15, True), "signal": (16, True), "resize": (17, True), "credit": (18, True),
    "end": (19, True), "close": (20, False), "ping": (21, False), "pong": (22, False),
    "queue": (23, False), "detach": (32, True), "position": (33, True),
}
PREAMBLE = b"\0qvm-remote 2\r\n\xff"
QUEUE_PREAMBLE = b"\0qvm-remote 1\r\n\xff"
BULK = bytes(i * 7 & 0xFF for i in range(5000))


def header(kind, length, session):
    return struct.pack(">IIB3x", length, session, FRAMES[kind][0])


def plain(kind, session, payload=b""):
    assert not FRAMES[kind][1]
    return header(kind, len(payload), session) + payload


class Direction:
    """The frames of one session in one direction: the key and the count of what was sent."""

    def __init__(self, key, use_gmac=False):
        self.key, self.use_gmac, self.sequence = key, use_gmac, 0

    def seal(self, kind, session, payload=b""):
        number, tagged = FRAMES[kind]
        assert tagged
        covered = struct.pack(">IQB", session, self.sequence, number) + payload
        if self.use_gmac and kind in ("stdin_data", "stdout_data", "stderr_data") and len(payload) >= 4096:
            tag = gmac(mac(self.key, b"gmac\0"), struct.pack(">IQ", 0, self.sequence), covered)
        else:
            tag = mac(self.key, covered)[:16]
        self.sequence += 1
        return header(kind, len(payload) + 16, session) + payload + tag


def text16(text):
    return struct.pack(">H", len(text)) + text


def envelope(kind, ident, flags=0, timeout=300, features=0, environment=(), arguments=(), body=b"",
             follows=False, nonce=bytes(range(16)), columns=0, rows=0):
    out = struct.pack(">H16sBBIIHH", 2, nonce, kind, flags, timeout, features, columns, rows)
    out += bytes([len(ident)]) + ident
    out += struct.pack(">H", len(environment))
    for key, value in environment:
        out += text16(key) + text16(value)
    out += struct.pack(">H", len(arguments))
    for argument in arguments:
        out += text16(argument)
    out += struct.pack(">BI", follows, len(body))
    return out + (hashlib.sha256(body).digest() if follows else body)


def packed(arguments, body=b""):
    block = b"".join(a + b"\0" for a in arguments)
    return struct.pack(">I", len(block)) + block + body


def hello(peer, features=1):
    return struct.pack(">HIB", 2, features, len(peer)) + peer


class Keys:
    def __init__(self, key, hello_payload, challenge, request_header):
        self.root = mac(key, b"qvm-remote/2 root\0")
        self.t = hashlib.sha256(hello_payload).digest()
        self.token = mac(self.root, b"req\0", self.t, challenge, request_header)
        self.c2d = mac(self.root, b"c2d\0", self.token)
        self.d2c = mac(self.root, b"d2c\0", self.token)


def fingerprint(key):
    return b"SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).rstrip(b"=")


def protocol1():
    lower = hashlib.sha256(b"a key for tests").hexdigest().encode()
    upper = lower.upper()
    rows = []
    for name, key in ("lower", lower), ("upper", upper):
        rows.append(("key." + name, key))
        rows.append(("fingerprint." + name, fingerprint(key)))
        for ident_name, ident in (("usual", b"20260218-143022-12345-a1b2c3d4"),
                                  ("ping", b"ping-1771425022000000000-4242"),
                                  ("foreign", b"e2e-single-001"), ("shortest", b"a"),
                                  ("longest", b"x" * 128)):
            if name == "lower":
                rows.append(("id." + ident_name, ident))
            rows.append((f"token.{name}.{ident_name}", mac(key, ident).hex().encode()))
    return "Protocol 1: the token of an ID. All values are text.", rows


def protocol2():
    key = hashlib.sha256(b"a key for tests").hexdigest().encode()
    peer = b"work"
    challenge = bytes(range(0x80, 0xA0))
    ident = b"20260218-143022-12345-a1b2c3d4"
    environment = [(b"TERM", b"xterm-256color"), (b"LANG", b"C.UTF-8")]
    script = b"#!/bin/bash\nprintf '%s\\n' \"$@\"\n"
    envelopes = {
        "shell": envelope(1, ident, flags=1, timeout=60, environment=environment,
                          body=b"cat; echo done >&2\n"),
        "exec": envelope(2, ident, arguments=[b"qvm-prefs", b"work", b"memory", b"4096"]),
        "script": envelope(3, ident, arguments=[b"one", b"two words", b""], body=script),
        "script_follows": envelope(3, ident, features=1, arguments=[b"one"], body=script, follows=True),
        "ping": envelope(4, b"ping-1771425022000000000-4242", timeout=0),
        "status": envelope(5, b"status-1"),
        "exec_packed": envelope(2, ident, features=9, body=packed([b"printf", b"%s", b""]), follows=True),
        "script_packed": envelope(3, ident, features=9, body=packed([b"one", b"two words"], script), follows=True),
        "dry_run": envelope(1, ident, flags=8, body=b"true\n"),
        "terminal": envelope(2, ident, flags=3, timeout=0, features=16, environment=environment,
                             arguments=[b"bash", b"-l"], columns=132, rows=43),
        "detached": envelope(1, ident, flags=5, timeout=0, features=32, body=b"cat\n"),
        "job_list": envelope(6, b"job-1", features=32, arguments=[b"list"]),
        "job_attach": envelope(6, b"job-2", flags=1, features=32,
                               arguments=[b"attach", ident, b"4096", b"0"]),
    }
    hello_payload = hello(peer)
    keys = Keys(key, hello_payload, challenge, envelopes["shell"])
    bulk_keys = Keys(key, hello_payload, challenge, envelopes["script_follows"])

    rows = [("preamble", PREAMBLE), ("queue.preamble", QUEUE_PREAMBLE), ("key", key), ("peer", peer), ("hello", hello_payload),
            ("t", keys.t), ("challenge", challenge), ("root", keys.root)]
    rows += [("envelope." + name, data) for name, data in envelopes.items()]
    rows += [("token." + name, Keys(key, hello_payload, challenge, data).token)
             for name, data in envelopes.items()]
    rows += [("c2d", keys.c2d), ("d2c", keys.d2c),
             ("gmac_key.c2d", mac(keys.c2d, b"gmac\0")), ("gmac_key.d2c", mac(keys.d2c, b"gmac\0")),
             ("body", script), ("body.exec_packed", packed([b"printf", b"%s", b""])),
             ("body.script_packed", packed([b"one", b"two words"], script))]

    # Each frame by itself; a tagged one as the first of its direction under the keys of token.shell.
    u16, u32, u64 = (lambda v: struct.pack(">H", v)), (lambda v: struct.pack(">I", v)), \
        (lambda v: struct.pack(">Q", v))
    pending = u64(7) + b"waiting for approval"
    payloads = [
        ("hello", 0, None, hello_payload), ("open", 0, None, b""),
        ("challenge", 1, None, challenge),
        ("request", 1, None, keys.token + envelopes["shell"]),
        ("body", 1, keys.c2d, script), ("pending", 1, keys.d2c, pending),
        ("accepted", 1, keys.d2c, u32(60) + u32(262144)),
        ("refused", 1, keys.d2c, u16(23) + b"no rule matches"),
        ("rejected", 1, None, u16(4)), ("stdin_data", 1, keys.c2d, b"hello\n"),
        ("stdin_eof", 1, keys.c2d, b""), ("stdout_data", 1, keys.d2c, b"hello\n"),
        ("stderr_data", 1, keys.d2c, b"done\n"), ("stdout_eof", 1, keys.d2c, b""),
        ("stderr_eof", 1, keys.d2c, b""), ("signal", 1, keys.c2d, b"\x02"),
        ("resize", 1, keys.c2d, u16(132) + u16(43)), ("credit", 1, keys.c2d, u32(65536)),
        ("end", 1, keys.d2c, b"\x01" + u32(0) + u64(6) + u64(5)),
        ("close", 1, None, u16(31)), ("ping", 0, None, b"\0\1\2\3\4\5\6\7"),
        ("pong", 0, None, b"\0\1\2\3\4\5\6\7"), ("queue", 0, None, b"idle\n"),
        ("detach", 1, keys.c2d, b""), ("position", 1, keys.d2c, u64(6) + u64(2**40)),
    ]
    assert [p[0] for p in payloads] == list(FRAMES)
    for name, session, direction_key, payload in payloads:
        rows.append(("frame." + name, plain(name, session, payload) if direction_key is None
                     else Direction(direction_key).seal(name, session, payload)))
    rows.append(("frame.stdout_data.gmac", Direction(keys.d2c, True).seal("stdout_data", 1, BULK[:4096])))
    rows.append(("frame.stdout_data.below_gmac",
                 Direction(keys.d2c, True).seal("stdout_data", 1, BULK[:4095])))

    # Two whole sessions, each the only one of its stream. `live`: stdin is streamed to a command that
    # an operator had to approve. `bulk`: the body follows its header, and output is large.
    c, d = Direction(keys.c2d), Direction(keys.d2c)
    live = [
        ("c", PREAMBLE), ("d", plain("hello", 0, hello_payload)), ("c", plain("open", 0)),
        ("d", plain("challenge", 1, challenge)),
        ("c", plain("request", 1, keys.token + envelopes["shell"])),
        ("d", d.seal("pending", 1, pending)),
        ("d", d.seal("accepted", 1, u32(60) + u32(262144))),
        ("c", c.seal("stdin_data", 1, b"hello\n")), ("d", d.seal("stdout_data", 1, b"hello\n")),
        ("c", c.seal("signal", 1, b"\x12")), ("c", c.seal("stdin_eof", 1)),
        ("d", d.seal("stdout_eof", 1)),
        ("d", d.seal("stderr_data", 1, b"done\n")), ("d", d.seal("stderr_eof", 1)),
        ("d", d.seal("end", 1, b"\x01" + u32(0) + u64(6) + u64(5))),
    ]
    c, d = Direction(bulk_keys.c2d, True), Direction(bulk_keys.d2c, True)
    bulk = [
        ("c", PREAMBLE), ("d", plain("hello", 0, hello_payload)), ("c", plain("open", 0)),
        ("d", plain("challenge", 1, challenge)),
        ("c", plain("request", 1, bulk_keys.token + envelopes["script_follows"])),
        ("d", d.seal("credit", 1, u32(len(script)))), ("c", c.seal("body", 1, script)),
        ("d", d.seal("accepted", 1, u32(300) + u32(0))),
        ("d", d.seal("stdout_data", 1, BULK)),
        ("d", d.seal("end", 1, b"\x01" + u32(3) + u64(len(BULK)) + u64(0))),
    ]
    for name, frames in ("live", live), ("bulk", bulk):
        for side, direction in ("c", "to_dom0"), ("d", "to_qube"):
            rows.append((f"session.{name}.{direction}", b"".join(f for s, f in frames if s == side)))
    return "Protocol 2: keys, request headers, frames and two whole sessions.", rows


def render(title, rows):
    lines = [f"# {title}", "# Made by make.py; a test compares.", ""]
    for name, value in rows:
        if len(value) > 2 and all(0x20 <= b < 0x7F for b in value):
            lines.append("# " + value.decode())
        lines.append(f"{name} = {value.hex()}")
    return "\n".join(lines) + "\n"


def main():
    failed = False
    for file, (title, rows) in ("protocol1.txt", protocol1()), ("protocol2.txt", protocol2()):
        path = os.path.join(HERE, file)
        text = render(title, rows)
        if sys.argv[1:] == ["--check"]:
            with open(path, encoding="ascii") as f:
                if f.read() != text:
                    print(f"{file} is not what make.py makes", file=sys.stderr)
                    failed = True
        else:
            with open(path, "w", encoding="ascii") as f:
                f.write(text)
    return 1 if failed else 0


sys.exit(main())
