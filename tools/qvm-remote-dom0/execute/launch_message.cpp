// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/launch_message.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/host/files.hpp>

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

constexpr std::array<std::string_view, 4> program_directories = {
    "/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/"};
constexpr std::size_t inline_block = 64 * 1024;        // fits into a default socket buffer
constexpr std::size_t largest_block = 8 * 1024 * 1024; // execve's own limit is lower
constexpr std::size_t most_extra = 16;
constexpr std::size_t most_descriptors = 4 + most_extra + 2 + 1;

// The launch block: `launch` as bytes, without its descriptors. Each string ends in NUL, so that argv
// can point into the block.

void put_string(byte_writer &to, std::string_view text) {
    to.u32(static_cast<std::uint32_t>(text.size() + 1));
    to.put(text);
    to.u8(0);
}

void put_strings(byte_writer &to, const std::vector<std::string> &strings) {
    to.u32(static_cast<std::uint32_t>(strings.size()));
    for (const std::string &s : strings)
        put_string(to, s);
}

enum : std::uint8_t {
    has_user = 1,
    has_oom_score = 2,
    has_no_new_privs = 4,
    is_confined = 8,
    has_terminal = 16,
    is_job = 32
};

void put_job(byte_writer &to, const job_launch &job) {
    for (const std::string *text : {&job.name, &job.home.directory, &job.home.name})
        put_string(to, *text);
    to.put(job.secret);
    to.u8(static_cast<std::uint8_t>((job.home.memory ? 1 : 0) | (job.home.pids ? 2 : 0) |
                                    (job.home.cpu ? 4 : 0) | (job.takes_input ? 8 : 0) |
                                    (job.ends_with_first ? 16 : 0)));
    to.u64(job.kept_bytes);
    to.u64(job.output_bytes);
    to.u32(job.timeout_s);
    to.u16(job.columns);
    to.u16(job.rows);
}

void put_launch(byte_writer &to, const launch &command) {
    to.u8(static_cast<std::uint8_t>(
        (command.user ? has_user : 0) | (command.oom_score_adj ? has_oom_score : 0) |
        (command.no_new_privs ? has_no_new_privs : 0) | (command.confined ? is_confined : 0) |
        (command.terminal ? has_terminal : 0) | (command.job ? is_job : 0)));
    to.u32(command.umask);
    to.u32(static_cast<std::uint32_t>(command.oom_score_adj.value_or(0)));
    to.u64(command.most.memory_bytes);
    to.u32(command.most.pids);
    to.u32(command.most.cpu_percent);
    const identity as = command.user.value_or(identity{});
    to.u32(as.uid);
    to.u32(as.gid);
    to.u32(static_cast<std::uint32_t>(as.groups.size()));
    for (const gid_t g : as.groups)
        to.u32(g);
    to.u32(static_cast<std::uint32_t>(command.extra.size()));
    for (const auto &[from, number] : command.extra)
        to.u32(static_cast<std::uint32_t>(number));
    put_string(to, command.program);
    put_string(to, command.directory);
    put_strings(to, command.argv);
    put_strings(to, command.environment);
    if (command.job)
        put_job(to, *command.job);
}

[[nodiscard]] bool has_nul(const std::string &text) { return text.find('\0') != std::string::npos; }

[[nodiscard]] char *take_string(byte_reader &from) {
    const auto size = from.u32();
    const auto text = from.take(size.value_or(0));
    if (!text || text->empty() || text->back() != 0)
        return nullptr;
    // execve takes char *const and does not change it.
    return const_cast<char *>(as_text(*text).data());
}

[[nodiscard]] bool take_strings(byte_reader &from, std::vector<char *> &to) {
    const std::uint32_t n = from.u32().value_or(0);
    if (n > from.left())
        return false;
    to.reserve(n + 1);
    for (std::uint32_t i = 0; i < n; ++i)
        if (to.emplace_back(take_string(from)) == nullptr)
            return false;
    to.push_back(nullptr);
    return true;
}

[[nodiscard]] bool take_job(byte_reader &from, std::optional<job_launch> &to) {
    job_launch out;
    for (std::string *text : {&out.name, &out.home.directory, &out.home.name}) {
        const char *const taken = take_string(from);
        if (!taken)
            return false;
        *text = taken;
    }
    const auto secret = from.array<32>();
    const std::uint8_t has = from.u8().value_or(0);
    out.kept_bytes = from.u64().value_or(0);
    out.output_bytes = from.u64().value_or(0);
    out.timeout_s = from.u32().value_or(0);
    out.columns = from.u16().value_or(0);
    const auto rows = from.u16();
    if (!rows)
        return false;
    out.secret = *secret;
    out.rows = *rows;
    out.home.memory = has & 1;
    out.home.pids = has & 2;
    out.home.cpu = has & 4;
    out.takes_input = has & 8;
    out.ends_with_first = has & 16;
    to = std::move(out);
    return true;
}

[[nodiscard]] host::outcome<unique_fd> file_of(bytes_view data) {
    unique_fd out(::memfd_create("qvm-remote launch", MFD_CLOEXEC));
    if (!out)
        return host::failed("cannot make a file in memory", errno);
    if (!host::write_all(out.get(), as_text(data)))
        return host::failed("cannot write a file in memory", errno);
    return out;
}

} // namespace

const char *why_not(const launch &command) {
    if (command.program.empty() || command.argv.empty())
        return "a command needs a program and an argv";
    if (has_nul(command.program) || has_nul(command.directory) ||
        std::any_of(command.argv.begin(), command.argv.end(), has_nul) ||
        std::any_of(command.environment.begin(), command.environment.end(), has_nul))
        return "a command holds a NUL byte";
    if (command.in < 0 || command.out < 0 || command.err < 0 || command.extra.size() > most_extra)
        return "a command lacks a descriptor or has too many";
    if (command.job && (command.job->end < 0 || command.job->listener < 0))
        return "a job lacks a descriptor";
    for (auto at = command.extra.begin(); at != command.extra.end(); ++at)
        if (at->first < 0 || at->second < 3 || at->second > 1023 ||
            std::any_of(command.extra.begin(), at,
                        [&](const auto &other) { return other.second == at->second; }))
            return "a command's descriptor has no number of its own";
    return nullptr;
}

namespace {

// One message with descriptors. Returns as sendmsg does.
[[nodiscard]] ssize_t send_message(int socket, bytes &block, const std::vector<int> &descriptors) {
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_descriptors)> ancillary{};
    const std::size_t size = descriptors.size() * sizeof(int);
    iovec part{block.data(), block.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), descriptors.data(), size);
    return ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

} // namespace

host::outcome<void> send_job(int control, const job_launch &job,
                             const std::array<int, 6> &descriptors) {
    bytes block;
    byte_writer to(block);
    to.u8(0); // see take_message
    put_job(to, job);
    if (send_message(control, block, {descriptors.begin(), descriptors.end()}) < 0)
        return host::failed("its keeper does not answer", errno);
    return {};
}

std::optional<job_launch> take_job(bytes_view block) {
    byte_reader from(block);
    std::optional<job_launch> out;
    if (!take_job(from, out) || from.left() != 0)
        return {};
    return out;
}

host::outcome<void> send_launch(int socket, int control, const launch &command) {
    bytes block;
    byte_writer to(block);
    to.u8(0); // see take_message
    put_launch(to, command);
    if (block.size() > largest_block)
        return host::failed(
            "the command and its environment are too long to start: send data by standard input "
            "instead",
            E2BIG);

    std::vector<int> descriptors = {control, command.in, command.out, command.err};
    for (const auto &[fd, number] : command.extra)
        descriptors.push_back(fd);
    if (command.job)
        descriptors.insert(descriptors.end(), {command.job->end, command.job->listener});
    unique_fd file;
    if (block.size() > inline_block) {
        auto made = file_of(bytes_view(block).subspan(1));
        if (!made)
            return tl::unexpected(made.error());
        file = std::move(*made);
        descriptors.push_back(file.get());
        block.resize(1);
    }

    for (bool waited = false;;) {
        if (send_message(socket, block, descriptors) >= 0)
            break;
        if (errno == EINTR)
            continue;
        if (errno == EPIPE || errno == ECONNRESET)
            return host::failed(
                "the process that starts commands has ended: systemctl restart qvm-remote-dom0",
                errno);
        if (errno != EAGAIN || waited)
            return host::failed("cannot reach the process that starts commands", errno);
        // Waiting is simpler than a queue: the warden starts a command in a tenth of a millisecond.
        pollfd p{socket, POLLOUT, 0};
        waited = ::poll(&p, 1, 1000) == 0;
    }
    return {};
}

std::optional<launch_message> take_message(int socket, int flags) {
    // Not on the stack. The kernel gives memory only to the pages that are written.
    static std::array<std::uint8_t, inline_block> text;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_descriptors)> ancillary;
    iovec part{text.data(), text.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.data();
    message.msg_controllen = ancillary.size();
    const ssize_t n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | flags);
    launch_message out;
    if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET))
        return out;
    if (n <= 0)
        return {};
    for (cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd;
            std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            out.received.emplace_back(fd);
        }
    }
    // Without its first byte, which is there because an empty message would look like the end.
    out.block = bytes_view(text.data(), static_cast<std::size_t>(n)).subspan(1);
    return out;
}

bytes_view map_block(int fd) noexcept {
    struct stat at {};
    if (::fstat(fd, &at) != 0 || at.st_size <= 0)
        return {};
    const auto size = static_cast<std::size_t>(at.st_size);
    const void *data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    return data == MAP_FAILED ? bytes_view()
                              : bytes_view(static_cast<const std::uint8_t *>(data), size);
}

bool take_launch(bytes_view block, preparation &p) {
    byte_reader from(block);
    const std::uint8_t has = from.u8().value_or(0);
    p.mask = from.u32().value_or(077);
    const auto score = static_cast<std::int32_t>(from.u32().value_or(0));
    if (has & has_oom_score)
        p.oom_score = std::to_string(score);
    p.no_new_privs = has & has_no_new_privs;
    p.confined = has & is_confined;
    p.terminal = has & has_terminal;
    p.most.memory_bytes = from.u64().value_or(0);
    p.most.pids = from.u32().value_or(0);
    p.most.cpu_percent = from.u32().value_or(0);
    const auto uid = from.u32();
    const auto gid = from.u32();
    const auto groups = from.u32();
    if (!groups || *groups > from.left())
        return false;
    identity as{*uid, *gid, {}};
    for (std::uint32_t i = 0; i < *groups; ++i)
        as.groups.push_back(from.u32().value_or(0));
    if (has & has_user)
        p.user = std::move(as);
    const auto extra = from.u32();
    if (!extra || *extra > most_extra)
        return false;
    p.descriptors = {{-1, 0}, {-1, 1}, {-1, 2}};
    for (std::uint32_t i = 0; i < *extra; ++i)
        p.descriptors.emplace_back(-1, static_cast<int>(from.u32().value_or(0)));
    const char *program = take_string(from);
    p.directory = take_string(from);
    if (!program || !p.directory || !take_strings(from, p.argv) ||
        !take_strings(from, p.environment))
        return false;
    if (((has & is_job) && !take_job(from, p.job)) || from.left() != 0)
        return false;
    if (std::strchr(program, '/'))
        p.places.emplace_back(program);
    else
        for (const std::string_view directory : program_directories)
            p.places.push_back(std::string(directory) + program);
    return true;
}

} // namespace qvmremote::dom0
