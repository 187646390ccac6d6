// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/panic.hpp"

#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>

namespace qvmremote::dom0 {

bool is_panic(const paths &where) noexcept {
    struct stat st {};
    return ::lstat(where.panic().c_str(), &st) == 0 || errno != ENOENT;
}

host::outcome<void> set_panic(const paths &where, const std::string &words) {
    if (auto made = host::make_directories(where.state_directory(), 0700); !made)
        return made;
    struct stat st {};
    if (::lstat(where.panic().c_str(), &st) == 0)
        return {};
    return host::write_atomically(where.panic(), words + "\n", 0600, host::durability::synced);
}

host::outcome<void> clear_panic(const paths &where) {
    auto directory = host::open_trusted(where.state_directory(), host::trusted::directory);
    if (!directory)
        return tl::unexpected(directory.error());
    if (::unlink(where.panic().c_str()) != 0)
        return host::failed("cannot remove " + where.panic(), errno);
    if (::fsync(directory->get()) != 0)
        return host::failed("cannot sync " + where.state_directory(), errno);
    return {};
}

} // namespace qvmremote::dom0
