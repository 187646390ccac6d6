// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

namespace qvmremote::qube {

int fail_with(error_name name, const std::string &what) {
    complain(name, what);
    return 1;
}

} // namespace qvmremote::qube
