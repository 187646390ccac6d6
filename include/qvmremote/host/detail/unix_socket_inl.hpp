// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of host/unix_socket.hpp.

#pragma once

#include <cerrno>

#include <sys/stat.h>

#include <qvmremote/host/unix_socket.hpp>

namespace qvmremote::host {

inline outcome<unix_address> unix_address::of_path(std::string_view path) {
    if (path.empty() || path.find('\0') != std::string_view::npos)
        return failed("a socket needs a path without NUL bytes", EINVAL);
    if (path.size() > longest_path)
        return tl::unexpected(failure{std::string(path) + " exceeds " +
                                          std::to_string(longest_path) +
                                          " bytes; choose a shorter path",
                                      ENAMETOOLONG});
    unix_address out;
    out.address_.sun_family = AF_UNIX;
    path.copy(out.address_.sun_path, path.size());
    out.size_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
    return out;
}

inline outcome<unix_address> unix_address::of_abstract(std::string_view name) {
    if (name.empty())
        return failed("an abstract socket needs a name", EINVAL);
    if (name.size() > longest_path)
        return tl::unexpected(failure{"@" + std::string(name) + " exceeds " +
                                          std::to_string(longest_path) +
                                          " bytes; choose a shorter name",
                                      ENAMETOOLONG});
    unix_address out;
    out.address_.sun_family = AF_UNIX;
    name.copy(out.address_.sun_path + 1, name.size());
    out.size_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    return out;
}

inline std::string unix_address::text() const {
    std::string out(address_.sun_path, size_ - offsetof(sockaddr_un, sun_path));
    if (out.front() == '\0')
        out.front() = '@';
    else
        out.pop_back(); // the NUL after a path
    return out;
}

inline outcome<unique_fd> connect_unix(const unix_address &to, int type) {
    unique_fd out(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    if (!out)
        return failed("cannot make a socket", errno);
    if (::connect(out.get(), to.get(), to.size()) != 0)
        return failed("cannot connect to " + to.text(), errno);
    return out;
}

inline outcome<unique_fd> connect_unix(std::string_view path, int type) {
    return unix_address::of_path(path).and_then(
        [type](const unix_address &to) { return connect_unix(to, type); });
}

inline outcome<unique_fd> bind_unix(const unix_address &at, int type, mode_t mode) {
    unique_fd out(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
    if (!out || ::fchmod(out.get(), mode) != 0 || ::bind(out.get(), at.get(), at.size()) != 0)
        return failed("cannot listen at " + at.text(), errno);
    return out;
}

inline outcome<unique_fd> listen_unix(const unix_address &at, mode_t mode, int backlog) {
    auto out = bind_unix(at, SOCK_STREAM | SOCK_NONBLOCK, mode);
    if (out && ::listen(out->get(), backlog) != 0)
        return failed("cannot listen at " + at.text(), errno);
    return out;
}

} // namespace qvmremote::host
