# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers on the command line of a test, NAME=N."""

import sys


def number(name, otherwise):
    found = [w for w in sys.argv if w.startswith(name + "=")]
    sys.argv = [w for w in sys.argv if w not in found]
    return int(found[-1].partition("=")[2]) if found else otherwise
