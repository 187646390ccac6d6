#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs as a user sees them: what the user types, and what must happen.

It runs as an ordinary user with its own HOME (root gives up its rights first), with the shipped client and
daemon over the mock transport. Cases for every transport are in common.py. The cases are in the modules cli_*.
Usage: cli.py BUILD-DIRECTORY [CASE...]
"""

# Each module registers its cases, which run in this order.
import cli_administration, cli_client, cli_faults  # noqa: E401,F401
from fixture import main

main()
