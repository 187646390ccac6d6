// SPDX-License-Identifier: GPL-2.0-or-later
#include "commands/commands.hpp"

#include <algorithm>

#include <dirent.h>

namespace qvmremote::qube {

int fail_with(const std::string &what) {
    complain(what);
    return 1;
}

std::vector<std::string> names_in(const std::string &directory) {
    std::vector<std::string> out;
    DIR *const open = ::opendir(directory.c_str());
    if (!open)
        return out;
    while (const dirent *entry = ::readdir(open))
        if (entry->d_name[0] != '.')
            out.emplace_back(entry->d_name);
    ::closedir(open);
    std::sort(out.begin(), out.end());
    return out;
}

} // namespace qvmremote::qube
