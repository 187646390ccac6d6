#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests the start of the virtual machine with a script in qemu's place: which accelerators are tried, and
which line of qemu is reported when none works."""

import os
import sys
import tempfile

import machine

QEMU = r"""#!/bin/sh
case " $* " in
*" kvm "*) with=kvm ;;
*) with=tcg ;;
esac
echo $with >>"$0.calls"
case $with:$(cat "$0.behaviour") in
kvm:kvm-aborts | *:all-abort) echo "error: failed to set MSR 0x10a to 0x0" >&2; kill -ABRT $$ ;;
kvm:kvm-refuses) echo "Could not access KVM kernel module" >&2; exit 1 ;;
kvm:guest-dies) echo "first line of the guest"; kill -ABRT $$ ;;
esac
echo "guest with $with"
"""

# behaviour, accelerators that are tried, last line
ROWS = [
    ("works", ["kvm"], "guest with kvm"),
    ("kvm-aborts", ["kvm", "tcg"], "guest with tcg"),
    ("kvm-refuses", ["kvm", "tcg"], "guest with tcg"),
    ("all-abort", ["kvm", "tcg"], "error: failed to set MSR 0x10a to 0x0"),
    # A guest that has printed a line is not started again, because what it printed would count twice.
    ("guest-dies", ["kvm"], "first line of the guest"),
]

failed = 0
for behaviour, wanted_calls, wanted_line in ROWS:
    with tempfile.TemporaryDirectory(prefix="qvm-vm-start-", dir="/tmp") as scratch:
        qemu = os.path.join(scratch, "qemu")
        for name, text in (("", QEMU), (".behaviour", behaviour), (".calls", "")):
            with open(qemu + name, "w", encoding="utf-8") as f:
                f.write(text)
        os.chmod(qemu, 0o755)
        guest = machine.Machine("kernel", "initrd", qemu=qemu, choices=[["-accel", "kvm"], machine.EMULATOR])
        lines = [line.decode().rstrip() for line in guest.lines()]
        with open(qemu + ".calls", encoding="utf-8") as f:
            calls = f.read().split()
    good = calls == wanted_calls and lines[-1:] == [wanted_line]
    failed += not good
    print(f"{behaviour:12} {'ok' if good else f'FAILED: {calls} {lines}'}")
sys.exit(1 if failed else 0)
