// SPDX-License-Identifier: GPL-2.0-or-later
#include "base/qubesd.hpp"

#include <array>
#include <cerrno>
#include <cstdint>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/clock.hpp>
#include <qvmremote/host/unix_socket.hpp>

namespace qvmremote::dom0 {

namespace {

constexpr std::uint64_t answer_limit_ms = 10'000;
constexpr std::size_t largest_answer = 256 * 1024;

} // namespace

host::outcome<std::optional<std::string>>
ask_qubesd(const std::string &socket, std::string_view method, std::string_view target) {
    const auto connected = host::connect_unix(socket, SOCK_STREAM | SOCK_NONBLOCK);
    if (!connected)
        return tl::unexpected(connected.error());
    const int fd = connected->get();
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 ||
        (who.uid != 0 && who.uid != ::geteuid()))
        return host::failed("the process that listens at " + socket +
                            " runs as neither this user nor root");
    std::string call = std::string(method) + "+ dom0 name " + std::string(target);
    call.push_back('\0');
    if (::send(fd, call.data(), call.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(call.size()) ||
        ::shutdown(fd, SHUT_WR) != 0)
        return host::failed("cannot write to " + socket, errno);
    std::string answer;
    const std::uint64_t end_ms = host::awake_ms() + answer_limit_ms;
    for (std::array<char, 4096> piece;;) {
        const std::uint64_t now_ms = host::awake_ms();
        pollfd wait{fd, POLLIN, 0};
        if (now_ms >= end_ms || answer.size() > largest_answer)
            return std::nullopt;
        if (::poll(&wait, 1, static_cast<int>(end_ms - now_ms)) < 1)
            continue;
        const ssize_t n = ::read(fd, piece.data(), piece.size());
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (n < 0)
            return std::nullopt;
        if (n == 0)
            return answer;
        answer.append(piece.data(), static_cast<std::size_t>(n));
    }
}

std::optional<std::string_view> qubesd_word(std::string_view untrusted_answer,
                                            std::string_view key) {
    constexpr std::string_view good("0\0", 2);
    if (!untrusted_answer.starts_with(good))
        return std::nullopt;
    for (const std::string_view word : split_words(untrusted_answer.substr(good.size())))
        if (word.starts_with(key) && word.substr(key.size()).starts_with('='))
            return word.substr(key.size() + 1);
    return std::nullopt;
}

} // namespace qvmremote::dom0
