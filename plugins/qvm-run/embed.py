#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a C++ header of the shell program that is sent to qubes: embed.py queue.sh OUT.hpp. Comment
lines, empty lines and indentation are left out. The rest is compressed and written in base64, because
every login shell takes these letters between single quotes as they are: csh expands `!` and refuses a
newline there, fish gives `\\` a meaning, and no shell takes a single quote."""
import base64
import sys
import zlib

source, out = sys.argv[1:]
with open(source, encoding="ascii") as f:
    lines = [line.strip() for line in f]
text = "\n".join(line for line in lines if line and not line.startswith("#"))
if "\0" in text:
    sys.exit(f"{source}: holds a NUL")
gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
packed = base64.b64encode(gzip.compress(text.encode("ascii")) + gzip.flush()).decode("ascii")
with open(out, "w", encoding="ascii") as f:
    f.write(f"""// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Made of queue.sh by embed.py: gzip, then base64.

#pragma once

#include <string_view>

namespace qvm_run {{

inline constexpr std::string_view queue_program = "{packed}";

}} // namespace qvm_run
""")
