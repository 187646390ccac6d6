#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Recomputes tokens and tags of the vectors with the openssl command, as anybody could by hand."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def read(file):
    out = {}
    with open(os.path.join(HERE, file), encoding="ascii") as f:
        for line in f:
            if line.strip() and not line.startswith("#"):
                name, value = line.split(" =")
                out[name] = bytes.fromhex(value.strip())
    return out


def openssl_hmac(key, message):
    out = subprocess.run(["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt",
                          "hexkey:" + key.hex(), "-binary"],
                         input=message, check=True, stdout=subprocess.PIPE)
    return out.stdout


def main():
    wrong = []

    def same(what, got, want):
        if got != want:
            wrong.append(what)

    one = read("protocol1.txt")
    for case in "lower", "upper":
        for name in "usual", "ping", "longest":
            same(f"protocol 1 {case} {name}",
                 openssl_hmac(one["key." + case], one["id." + name]).hex().encode(),
                 one[f"token.{case}.{name}"])

    two = read("protocol2.txt")
    root = openssl_hmac(two["key"], b"qvm-remote/2 root\0")
    same("root", root, two["root"])
    for kind in "shell", "exec", "script", "script_follows", "ping", "status":
        same("token." + kind,
             openssl_hmac(root, b"req\0" + two["t"] + two["challenge"] + two["envelope." + kind]),
             two["token." + kind])
    same("c2d", openssl_hmac(root, b"c2d\0" + two["token.shell"]), two["c2d"])
    same("d2c", openssl_hmac(root, b"d2c\0" + two["token.shell"]), two["d2c"])
    for name, key in ("stdin_data", "c2d"), ("signal", "c2d"), ("end", "d2c"), ("accepted", "d2c"):
        frame = two["frame." + name]
        session, kind, payload = frame[4:8], frame[8:9], frame[12:-16]
        # The first frame of its direction: sequence 0.
        same("tag of " + name, openssl_hmac(two[key], session + bytes(8) + kind + payload)[:16],
             frame[-16:])

    for what in wrong:
        print("differs:", what, file=sys.stderr)
    return 1 if wrong else 0


sys.exit(main())
