// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// UNIX sockets: the address, the client's end and the server's end (unix(7)).

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::host {

/// The address of a UNIX socket: a path, or a name in the abstract namespace.
class unix_address {
  public:
    /// The longest path, in bytes (107): the kernel wants a NUL after it.
    static constexpr std::size_t longest_path = sizeof(sockaddr_un::sun_path) - 1;

    /// The address of a path. Fails with "PATH exceeds 107 bytes; choose a shorter path"
    /// (ENAMETOOLONG), or when the path is empty or holds a NUL (EINVAL), which would name another
    /// socket. Nothing needs to exist at the path.
    [[nodiscard]] static outcome<unix_address> of_path(std::string_view path);

    /// The address of a name in the abstract namespace, written without a prefix. Such a socket has
    /// no file and no mode: every process of the same network namespace may connect. Fails when the
    /// name is empty (EINVAL) or longer than 107 bytes (ENAMETOOLONG).
    [[nodiscard]] static outcome<unix_address> of_abstract(std::string_view name);

    /// What bind, connect and sendto take. Valid while the address exists.
    [[nodiscard]] const sockaddr *get() const noexcept {
        return reinterpret_cast<const sockaddr *>(&address_);
    }
    [[nodiscard]] socklen_t size() const noexcept { return size_; }

    /// The path, or '@' and the abstract name: for messages. Valid while the address exists.
    [[nodiscard]] std::string text() const;

  private:
    unix_address() noexcept = default;

    sockaddr_un address_{};
    socklen_t size_ = 0;
};

/// Connects to `to`. `type` is SOCK_STREAM or SOCK_DGRAM, with SOCK_NONBLOCK if the caller wants it;
/// the socket is close-on-exec. A non-blocking connect either succeeds at once or fails with EAGAIN,
/// when the listener's queue is full. Fails with "cannot connect to ADDRESS" or "cannot make a
/// socket", and errno: ENOENT and ECONNREFUSED when no process listens, EACCES when the mode of the
/// socket or of a directory forbids it.
[[nodiscard]] inline outcome<unique_fd> connect_unix(const unix_address &to,
                                                     int type = SOCK_STREAM);
/// The same by a path; fails as unix_address::of_path does, too.
[[nodiscard]] inline outcome<unique_fd> connect_unix(std::string_view path, int type = SOCK_STREAM);

/// Makes a socket at `at`; `type` is as for connect_unix. The file has `mode` at most from the moment
/// it exists, because on Linux bind gives it the mode of the socket; the umask can take rights away. A
/// stream socket refuses clients until the caller calls listen. The caller removes the file; an
/// existing one is not replaced. Fails with "cannot listen at ADDRESS" and errno: EADDRINUSE when
/// something exists there.
[[nodiscard]] inline outcome<unique_fd> bind_unix(const unix_address &at, int type, mode_t mode);

/// bind_unix for a non-blocking stream socket, which then listens with `backlog` places for clients
/// that wait for accept. Fails as bind_unix does; after a failed listen the file stays.
[[nodiscard]] inline outcome<unique_fd> listen_unix(const unix_address &at, mode_t mode,
                                                    int backlog);

} // namespace qvmremote::host

#include <qvmremote/host/detail/unix_socket_inl.hpp>
