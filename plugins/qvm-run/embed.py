#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a C++ header of the shell program that is sent to qubes: embed.py queue.sh OUT.hpp. Comment
lines, empty lines and indentation stay behind: the program has to fit into one message of qrexec."""
import sys

source, out = sys.argv[1:]
with open(source, encoding="ascii") as f:
    lines = [line.strip() for line in f]
text = "\n".join(line for line in lines if line and not line.startswith("#"))
if ')sh"' in text or "\0" in text:
    sys.exit(f"{source}: holds what a C++ literal or an argument cannot")
with open(out, "w", encoding="ascii") as f:
    f.write(f"""// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Made of queue.sh by embed.py.

#pragma once

#include <string_view>

namespace qvm_run {{

inline constexpr std::string_view queue_program = R"sh({text})sh";

}} // namespace qvm_run
""")
