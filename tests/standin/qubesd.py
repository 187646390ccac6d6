#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Plays as much of qubesd as a transport needs (QUBES.md §8): states and events of the stand-in's
qubes. Usage: qubesd.py SOCKET, with QVMREMOTE_STANDIN set. SIGTERM ends it.

The file `qubesd-faults` of the machine may hold `silent`, `garbage` or `no-events`. This program reads
the states every 20 ms, so that it needs only Python.
"""

import os
import selectors
import signal
import socket
import sys

MACHINE = os.environ["QVMREMOTE_STANDIN"]
EVENTS = {("Halted", "Running"): "domain-start", ("Running", "Halted"): "domain-shutdown",
          ("Paused", "Halted"): "domain-shutdown", ("Running", "Paused"): "domain-paused",
          ("Paused", "Running"): "domain-unpaused", (None, "Halted"): "domain-add",
          ("Halted", None): "domain-delete", ("Running", None): "domain-delete"}


def states():
    out = {}
    qubes = os.path.join(MACHINE, "qubes")
    for name in sorted(os.listdir(qubes)):
        try:
            with open(os.path.join(qubes, name, "state")) as f:
                out[name] = f.readline().strip()
        except OSError:
            pass
    return out


def fault():
    try:
        with open(os.path.join(MACHINE, "qubesd-faults")) as f:
            return f.readline().strip()
    except OSError:
        return ""


def exception(kind):
    return b"2\0" + kind.encode() + b"\0\0" + b"no\0"


def answer(request):
    """The answer, and whether the connection stays open for events."""
    head, _, _ = request.partition(b"\0")
    words = head.decode("ascii", "replace").split(" ")
    if len(words) != 4 or words[1] != "dom0" or words[2] != "name":
        return exception("QubesProtocolError"), False
    method, _, argument = words[0].partition("+")
    known = states()
    if method == "admin.vm.List" and not argument:
        lines = ["dom0 class=AdminVM state=Running"]
        lines += [f"{q} class=AppVM state={s}" for q, s in known.items()
                  if words[3] in ("dom0", q)]
        return b"0\0" + "".join(line + "\n" for line in lines).encode(), False
    if method == "admin.vm.CurrentState" and words[3] in known:
        return (b"0\0mem=400000 mem_static_max=4000000 cputime=1 power_state="
                + known[words[3]].encode()), False
    if method == "admin.vm.tag.List" and not argument and words[3] in known:
        try:
            with open(os.path.join(MACHINE, "qubes", words[3], "tags"), "rb") as f:
                return b"0\0" + f.read(), False
        except OSError:
            return b"0\0", False
    if method == "admin.Events" and words[3] == "dom0" and fault() != "no-events":
        return b"1\0\0connection-established\0\0", True
    return exception("QubesNoSuchMethod"), False


def main():
    path = sys.argv[1]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    signal.signal(signal.SIGTERM, lambda *_: (os.unlink(path), os._exit(0)))
    requests, watchers, before = {}, [], states()
    while True:
        for key, _ in selector.select(0.02):
            if key.fileobj is listener:
                made, _ = listener.accept()
                requests[made] = b""
                selector.register(made, selectors.EVENT_READ)
                continue
            peer = key.fileobj
            try:
                data = peer.recv(65536)
            except OSError:
                data = b""
            if peer in watchers:
                if not data:  # a half-closed connection would always be readable
                    selector.unregister(peer)
                continue
            requests[peer] += data
            if data:
                continue
            selector.unregister(peer)
            said, stays = answer(requests.pop(peer))
            if fault() == "silent":
                watchers.append(peer)
                continue
            if fault() == "garbage":
                said = os.urandom(4096)
            try:
                peer.sendall(said)
            except OSError:
                stays = False
            if stays:
                watchers.append(peer)
            else:
                peer.close()
        now = states()
        for qube in sorted(set(before) | set(now)):
            change = (before.get(qube), now.get(qube))
            if change[0] == change[1]:
                continue
            names = [EVENTS.get(change)] if change != (None, "Running") else \
                ["domain-add", "domain-start"]
            for name in filter(None, names):
                event = b"1\0" + qube.encode() + b"\0" + name.encode() + b"\0start_guid\0False\0\0"
                for peer in list(watchers):
                    try:
                        peer.sendall(event)
                    except OSError:
                        watchers.remove(peer)
                        peer.close()
        before = now


main()
