// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/script_file.hpp"

#include <cerrno>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::dom0 {

host::outcome<script_file> script_file::make(const std::string &directory, const std::string &name,
                                             std::string_view bytes, gid_t group) {
    std::string path = directory + "/" + name;
    // Nobody may read it before it is complete, and nobody may ever write to it.
    const host::unique_fd fd(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0));
    if (!fd)
        return host::failed("cannot make " + path, errno);
    script_file out(std::move(path));
    if (!host::write_all(fd.get(), bytes))
        return host::failed("cannot write " + out.path_, errno);
    if (::fchown(fd.get(), static_cast<uid_t>(-1), group) != 0 || ::fchmod(fd.get(), 0550) != 0)
        return host::failed("cannot set the mode of " + out.path_, errno);
    return out;
}

script_file::~script_file() {
    if (!path_.empty())
        ::unlink(path_.c_str());
}

host::outcome<void> prepare_scripts(const std::string &directory,
                                    const std::function<bool(const std::string &)> &is_used) {
    // Every account that runs a script may enter the directory, and none may list it.
    if (auto made = host::make_directories(directory, 0711); !made)
        return made;
    const auto safe = host::open_trusted(directory, host::trusted::directory);
    if (!safe)
        return tl::unexpected(safe.error());
    const auto left = host::names_in(safe->get());
    if (!left)
        return host::failed("cannot list " + directory, left.error().error_number);
    for (const std::string &name : *left)
        if (!is_used || !is_used(name))
            ::unlinkat(safe->get(), name.c_str(), 0);
    return {};
}

} // namespace qvmremote::dom0
