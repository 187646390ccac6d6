#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a C++ header of the shipped levels: embed.py MONITOR.rules MANAGE.rules OUT.hpp. Compiled in,
they can be neither missing nor edited where they are used. Comments stay behind, the lines stand."""
import sys

monitor, manage, out = sys.argv[1:]


def text_of(source):
    with open(source, encoding="ascii") as f:
        lines = ["" if line.startswith("#") else line.rstrip("\n") for line in f]
    text = "\n".join(lines) + "\n"
    if ')rules"' in text or "\0" in text:
        sys.exit(f"{source}: holds what a C++ literal cannot")
    return text


with open(out, "w", encoding="ascii") as f:
    f.write(f"""// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Made of monitor.rules and manage.rules by embed.py.

#pragma once

#include <string_view>

namespace qvmremote {{

inline constexpr std::string_view monitor_rules = R"rules({text_of(monitor)})rules";

inline constexpr std::string_view manage_rules = R"rules({text_of(manage)})rules";

}} // namespace qvmremote
""")
