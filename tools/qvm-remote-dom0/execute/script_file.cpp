// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/script_file.hpp"

#include <cerrno>
#include <filesystem>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

host::outcome<script_file> script_file::make(const std::string &directory, std::uint64_t serial,
                                             std::string_view bytes, gid_t group) {
    std::string path = directory + "/" + std::to_string(serial);
    // Nobody may read it before it is complete, and nobody may ever write to it.
    const host::unique_fd fd(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0));
    if (!fd)
        return host::failed("cannot make " + path, errno);
    script_file out(std::move(path));
    while (!bytes.empty()) {
        const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return host::failed("cannot write " + out.path_, n < 0 ? errno : EIO);
        bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    if (::fchown(fd.get(), static_cast<uid_t>(-1), group) != 0 || ::fchmod(fd.get(), 0550) != 0)
        return host::failed("cannot set the mode of " + out.path_, errno);
    return out;
}

script_file::~script_file() {
    if (!path_.empty())
        ::unlink(path_.c_str());
}

host::outcome<void> prepare_scripts(const std::string &directory) {
    // Every account that runs a script may enter the directory, and none may list it.
    if (auto made = host::make_directories(directory, 0711); !made)
        return made;
    if (auto safe = host::open_trusted(directory, host::trusted::directory); !safe)
        return tl::unexpected(safe.error());
    std::error_code failure;
    for (const auto &left : std::filesystem::directory_iterator(directory, failure))
        ::unlink(left.path().c_str());
    if (failure)
        return host::failed("cannot list " + directory, failure.value());
    return {};
}

} // namespace qvmremote::dom0
