#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs from the outside: what a user types, and what must happen.

Runs as an ordinary user with a HOME of its own (root gives up its rights first), the client and the
daemon being the shipped ones over the mock transport. What holds over any transport is in common.py. The
cases are in the modules cli_*.
Usage: cli.py BUILD-DIRECTORY [CASE...]
"""

# Each registers its cases, which run in this order.
import cli_administration, cli_client, cli_faults  # noqa: E401,F401
from fixture import main

main()
