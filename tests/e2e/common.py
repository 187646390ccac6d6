#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Cases that must hold over each transport. They are in the modules common_*.
Usage: common.py BUILD-DIRECTORY --transport mock|qvm-run|qrexec|qrexec-kept [CASE...]
"""

import sys

# Each module registers its cases, which run in this order.
import common_streams, common_ends, common_daemon, common_qubes  # noqa: E401,F401
from fixture import Fixture, main

at = sys.argv.index("--transport")
Fixture.transport = sys.argv[at + 1]
del sys.argv[at : at + 2]
main()
