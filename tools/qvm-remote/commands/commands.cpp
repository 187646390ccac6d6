// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

namespace qvmremote::qube {

int fail_with(const std::string &what) {
    complain(what);
    return 1;
}

} // namespace qvmremote::qube
