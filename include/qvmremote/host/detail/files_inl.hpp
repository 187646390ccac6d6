// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of host/files.hpp. They use no iostreams and no std::filesystem, because both slow down
/// the start of the client.

#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/files.hpp>

namespace qvmremote::host {
namespace detail {

// A path as one word of a shell, for a message of one line: in quotes if it needs them. A control
// character is shown as '?'.
[[nodiscard]] inline std::string shell_word(std::string_view text) {
    constexpr std::string_view plain = "/._-+,:@%=";
    if (!text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
            return is_alnum(c) || plain.find(c) != std::string_view::npos;
        }))
        return std::string(text);
    std::string out = "'";
    for (const char c : text) {
        if (c == '\'')
            out += "'\\''";
        else
            out += (c >= 0 && c < 0x20) || c == 0x7f ? '?' : c;
    }
    return out += '\'';
}

template <class Call>
[[nodiscard]] auto retry_on_eintr(Call call) {
    auto done = call();
    while (done < 0 && errno == EINTR)
        done = call();
    return done;
}

// Checks only the owner; the caller checks the mode.
[[nodiscard]] inline bool is_ours(const struct stat &at) noexcept {
    return at.st_uid == 0 || at.st_uid == ::geteuid();
}

[[nodiscard]] inline tl::unexpected<failure> distrusted(const std::string &path, std::string why,
                                                        const std::string &remedy) {
    auto out =
        failed(shell_word(path) + " is not to be trusted: " + std::move(why) + "; " + remedy);
    out.value().error_number = EPERM;
    return out;
}

[[nodiscard]] inline tl::unexpected<failure> wrong_owner(const std::string &path, uid_t owner) {
    return distrusted(path, "it belongs to uid " + std::to_string(owner),
                      "run: chown " +
                          (::geteuid() == 0 ? std::string("root") : std::to_string(::geteuid())) +
                          " " + shell_word(path));
}

// The failure for a `name` in `parent` that could not be opened. O_NOFOLLOW reports a symbolic link
// as ELOOP or ENOTDIR, so look whether it is one. This only improves the message: the file is
// refused in any case.
[[nodiscard]] inline tl::unexpected<failure>
open_failed(int parent, const std::string &name, const std::string &path, int error_number) {
    struct stat at {};
    if (::fstatat(parent, name.c_str(), &at, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(at.st_mode)) {
        std::array<char, PATH_MAX> target;
        const ssize_t size = ::readlinkat(parent, name.c_str(), target.data(), target.size());
        const std::string_view text(target.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
        return distrusted(path, "it is a symbolic link to " + shell_word(text),
                          "write the path without symbolic links");
    }
    if (error_number == ENOENT)
        return failed(shell_word(path) + " does not exist", ENOENT);
    return failed("cannot open " + shell_word(path), error_number);
}

// Checks an open directory on the way to the file. Whoever may write to a directory can replace a
// file in it. In a sticky directory nobody can replace a file of ours, and the next component is
// checked to be ours.
[[nodiscard]] inline outcome<void> check_parent(int fd, const std::string &path) {
    struct stat at {};
    if (::fstat(fd, &at) != 0)
        return failed("cannot look at " + shell_word(path), errno);
    if (!is_ours(at))
        return wrong_owner(path, at.st_uid);
    if ((at.st_mode & (S_IWGRP | S_IWOTH)) != 0 && (at.st_mode & S_ISVTX) == 0)
        return distrusted(path, "others can write in it", "run: chmod go-w " + shell_word(path));
    return {};
}

[[nodiscard]] inline outcome<void> check_target(int fd, const std::string &path, trusted kind) {
    struct stat at {};
    if (::fstat(fd, &at) != 0)
        return failed("cannot look at " + shell_word(path), errno);
    if (kind == trusted::directory ? !S_ISDIR(at.st_mode) : !S_ISREG(at.st_mode))
        return distrusted(
            path, kind == trusted::directory ? "it is not a directory" : "it is not a regular file",
            "move it away");
    if (!is_ours(at))
        return wrong_owner(path, at.st_uid);
    if (kind == trusted::secret && (at.st_mode & (S_IRWXG | S_IRWXO)) != 0)
        return distrusted(path, "it is a secret that others have access to",
                          "run: chmod 600 " + shell_word(path));
    if ((at.st_mode & (S_IWGRP | S_IWOTH)) != 0)
        return distrusted(path, "others can write to it", "run: chmod go-w " + shell_word(path));
    return {};
}

// Removes the next component from the front of `rest` and returns it; empty at the end. Repeated
// slashes count as one.
[[nodiscard]] inline std::string_view next_component(std::string_view &rest) {
    rest.remove_prefix(std::min(rest.find_first_not_of('/'), rest.size()));
    const std::string_view name = rest.substr(0, rest.find('/'));
    rest.remove_prefix(name.size());
    return name;
}

[[nodiscard]] inline bool is_last(std::string_view rest) {
    return rest.find_first_not_of('/') == std::string_view::npos;
}

// A path as directory and name: "a/b" is {"a", "b"}, "b" is {".", "b"}, "/b" is {"/", "b"}. split()
// returns nothing when the path does not end in the name of a file.
struct split_path {
    std::string directory;
    std::string name;
};
[[nodiscard]] inline std::optional<split_path> split(const std::string &path) {
    const std::size_t slash = path.rfind('/');
    split_path out;
    if (slash == std::string::npos)
        out = {".", path};
    else
        out = {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
    if (out.name.empty() || out.name == "." || out.name == ".." ||
        path.find('\0') != std::string::npos)
        return std::nullopt;
    return out;
}

// O_PATH: we may pass through a parent without the right to read it.
inline constexpr int parent_flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
// O_NONBLOCK: a FIFO at this path must not block the opener before it is refused.
[[nodiscard]] constexpr int target_flags(trusted kind) {
    return O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY |
           (kind == trusted::directory ? O_DIRECTORY : 0);
}

} // namespace detail

inline outcome<unique_fd> open_trusted(const std::string &absolute_path, trusted kind) {
    if (absolute_path.empty() || absolute_path[0] != '/' ||
        absolute_path.find('\0') != std::string::npos)
        return failed("path " + detail::shell_word(absolute_path) +
                          " is not absolute; write it from '/' on",
                      EINVAL);

    const auto flags = [&](std::string_view behind) {
        return detail::is_last(behind) ? detail::target_flags(kind) : detail::parent_flags;
    };
    std::string_view rest = absolute_path;
    std::string walked = "/";
    unique_fd at(::open("/", flags(rest)));
    if (!at)
        return failed("cannot open /", errno);
    while (!detail::is_last(rest)) {
        if (auto parent = detail::check_parent(at.get(), walked); !parent)
            return tl::unexpected(parent.error());
        const std::string name(detail::next_component(rest));
        if (name == "." || name == "..")
            return failed("path " + detail::shell_word(absolute_path) +
                              " holds '.' or '..'; write it without",
                          EINVAL);
        if (walked.size() > 1)
            walked += '/';
        walked += name;
        unique_fd next(::openat(at.get(), name.c_str(), flags(rest)));
        if (!next)
            return detail::open_failed(at.get(), name, walked, errno);
        at = std::move(next);
    }
    if (auto target = detail::check_target(at.get(), walked, kind); !target)
        return tl::unexpected(target.error());
    return at;
}

inline outcome<std::string> read_all(int fd, std::size_t limit) {
    const auto too_large = [&] {
        auto out =
            failed("more than the " + std::to_string(limit) + " bytes that are allowed here");
        out.value().error_number = EFBIG;
        return out;
    };
    struct stat at {};
    if (::fstat(fd, &at) != 0)
        return failed("cannot look at an open file", errno);
    std::size_t expected_size = 0;
    if (S_ISREG(at.st_mode)) {
        if (static_cast<std::uint64_t>(at.st_size) > limit)
            return too_large();
        expected_size = static_cast<std::size_t>(at.st_size);
    }

    // One byte more than expected, so that the read that finds the end needs no second buffer.
    // Pipes and files in /proc have no size: there the buffer begins with a page and doubles.
    std::string out(expected_size != 0 ? expected_size + 1 : std::min<std::size_t>(limit, 4095) + 1,
                    '\0');
    std::size_t used = 0;
    for (;;) {
        if (used == out.size())
            out.resize(used <= limit / 2 ? used * 2 : limit + 1);
        const ssize_t n = detail::retry_on_eintr(
            [&] { return ::read(fd, out.data() + used, out.size() - used); });
        if (n < 0)
            return failed("cannot read", errno);
        if (n == 0)
            break;
        used += static_cast<std::size_t>(n);
        if (used > limit)
            return too_large();
    }
    out.resize(used);
    return out;
}

inline bool write_all(int fd, std::string_view data) noexcept {
    while (!data.empty()) {
        const ssize_t n =
            detail::retry_on_eintr([&] { return ::write(fd, data.data(), data.size()); });
        if (n == 0)
            errno = EIO; // otherwise a device that accepts nothing would keep us here for ever
        if (n <= 0)
            return false;
        data.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
}

inline outcome<std::vector<std::string>> names_in(int directory, listed which) {
    const auto cannot = [](int error_number) {
        return failed("cannot read a directory", error_number);
    };
    unique_fd own(::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!own)
        return cannot(errno);
    const int fd = own.get();
    const std::unique_ptr<DIR, int (*)(DIR *)> open(::fdopendir(fd), ::closedir);
    if (!open)
        return cannot(errno);
    static_cast<void>(own.release()); // closedir closes it
    std::vector<std::string> out;
    for (;;) {
        errno = 0;
        const dirent *const entry = ::readdir(open.get());
        if (!entry)
            break;
        const std::string_view name = entry->d_name;
        if (name == "." || name == "..")
            continue;
        bool is_directory = entry->d_type == DT_DIR;
        if (entry->d_type == DT_UNKNOWN && which == listed::directories) {
            struct stat at {};
            is_directory =
                ::fstatat(fd, entry->d_name, &at, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(at.st_mode);
        }
        if (which == listed::all || is_directory)
            out.emplace_back(name);
    }
    if (errno != 0)
        return cannot(errno);
    std::sort(out.begin(), out.end());
    return out;
}

inline outcome<std::vector<std::string>> names_in(const std::string &path, listed which) {
    const auto cannot = [&](int error_number) {
        return failed("cannot read " + detail::shell_word(path), error_number);
    };
    const unique_fd directory(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!directory)
        return cannot(errno);
    auto out = names_in(directory.get(), which);
    if (!out)
        return cannot(out.error().error_number);
    return out;
}

namespace detail {
// A regular file that is open for reading, and its size.
struct sized_file {
    unique_fd fd;
    std::size_t size;
};
[[nodiscard]] inline outcome<sized_file> open_regular(const std::string &path) {
    unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (!fd)
        return open_failed(AT_FDCWD, path, path, errno);
    struct stat at {};
    if (::fstat(fd.get(), &at) != 0)
        return failed("cannot look at " + shell_word(path), errno);
    if (!S_ISREG(at.st_mode))
        return failed(shell_word(path) + " is not a regular file; name one that is");
    return sized_file{std::move(fd), static_cast<std::size_t>(at.st_size)};
}
} // namespace detail

inline outcome<std::string> read_text(const std::string &path, std::size_t limit) {
    const auto file = detail::open_regular(path);
    if (!file)
        return tl::unexpected(file.error());
    return read_all(file->fd.get(), limit).map_error([&](failure why) {
        return failure{detail::shell_word(path) + ": " + why.what, why.error_number};
    });
}

inline outcome<std::string> read_tail(const std::string &path, std::size_t most) {
    const auto file = detail::open_regular(path);
    if (!file)
        return tl::unexpected(file.error());
    std::string out(std::min(file->size, most), '\0');
    std::size_t used = 0;
    while (used < out.size()) {
        const ssize_t n = detail::retry_on_eintr([&] {
            return ::pread(file->fd.get(), out.data() + used, out.size() - used,
                           static_cast<off_t>(file->size - out.size() + used));
        });
        if (n < 0)
            return failed("cannot read " + detail::shell_word(path), errno);
        if (n == 0)
            break; // the file was cut meanwhile
        used += static_cast<std::size_t>(n);
    }
    out.resize(used);
    return out;
}

namespace detail {
[[nodiscard]] inline outcome<std::string> read_named(int fd, const std::string &path,
                                                     std::size_t limit) {
    return read_all(fd, limit).map_error([&](failure why) {
        return failure{shell_word(path) + ": " + why.what, why.error_number};
    });
}
} // namespace detail

inline outcome<trusted_directory> trusted_directory::open(std::string absolute_path) {
    auto fd = open_trusted(absolute_path, trusted::directory);
    if (!fd)
        return tl::unexpected(fd.error());
    return trusted_directory(std::move(*fd), std::move(absolute_path));
}

inline outcome<std::string> trusted_directory::read(const std::string &name, trusted kind,
                                                    std::size_t limit) const {
    const std::string whole = path_ + "/" + name;
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos)
        return failed(detail::shell_word(name) + " is not the name of a file", EINVAL);
    const unique_fd file(::openat(fd_.get(), name.c_str(), detail::target_flags(kind)));
    if (!file)
        return detail::open_failed(fd_.get(), name, whole, errno);
    if (auto target = detail::check_target(file.get(), whole, kind); !target)
        return tl::unexpected(target.error());
    return detail::read_named(file.get(), whole, limit);
}

inline outcome<std::string> read_trusted(const std::string &absolute_path, trusted kind,
                                         std::size_t limit) {
    auto fd = open_trusted(absolute_path, kind);
    if (!fd)
        return tl::unexpected(fd.error());
    return detail::read_named(fd->get(), absolute_path, limit);
}

inline outcome<void> write_atomically(const std::string &path, std::string_view data, mode_t mode,
                                      durability how) {
    const auto cannot = [&](const char *step, int error_number) {
        return failed(std::string("cannot ") + step + " " + detail::shell_word(path), error_number);
    };
    const auto parts = detail::split(path);
    if (!parts)
        return cannot("write a file named", EINVAL);
    const unique_fd directory(::open(parts->directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!directory)
        return cannot("open the directory of", errno);

    // A random name, so that two writers do not choose the same one. O_EXCL alone protects against
    // a file that somebody else put there.
    std::array<std::uint8_t, 8> random;
    if (detail::retry_on_eintr([&] { return ::getrandom(random.data(), random.size(), 0); }) !=
        static_cast<ssize_t>(random.size()))
        return cannot("draw a temporary name for", errno);
    const std::string temporary = ".qvm-remote-" + to_hex(random);

    unique_fd file(::openat(directory.get(), temporary.c_str(),
                            O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
    if (!file)
        return cannot("create", errno);
    const auto give_up = [&](const char *step, int error_number) {
        static_cast<void>(::unlinkat(directory.get(), temporary.c_str(), 0));
        return cannot(step, error_number);
    };
    if (::fchmod(file.get(), mode) != 0) // the umask may have taken bits away
        return give_up("set the mode of", errno);
    if (!write_all(file.get(), data))
        return give_up("write", errno);
    if (how == durability::synced && ::fsync(file.get()) != 0)
        return give_up("sync", errno);
    if (::renameat(directory.get(), temporary.c_str(), directory.get(), parts->name.c_str()) != 0)
        return give_up("replace", errno);
    if (how == durability::synced && ::fsync(directory.get()) != 0)
        return cannot("sync the directory of the newly written", errno);
    return {};
}

inline outcome<void> make_directories(const std::string &path, mode_t mode) {
    const auto cannot = [&](const char *step, int error_number) {
        return failed(std::string("cannot ") + step + " directory " + detail::shell_word(path),
                      error_number);
    };
    if (path.empty() || path.find('\0') != std::string::npos)
        return cannot("make", EINVAL);
    unique_fd at(::open(path[0] == '/' ? "/" : ".", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!at)
        return cannot("open", errno);
    std::string_view rest = path;
    while (!detail::is_last(rest)) {
        const std::string name(detail::next_component(rest));
        const bool made = ::mkdirat(at.get(), name.c_str(), mode) == 0;
        if (!made && errno != EEXIST)
            return cannot("make", errno);
        // Open a directory that we made with O_NOFOLLOW, so that fchmod cannot change the mode of
        // another one.
        unique_fd next(::openat(at.get(), name.c_str(),
                                O_DIRECTORY | O_CLOEXEC | (made ? O_RDONLY | O_NOFOLLOW : O_PATH)));
        if (!next)
            return cannot("open", errno);
        if (made && ::fchmod(next.get(), mode) != 0)
            return cannot("set the mode of", errno);
        at = std::move(next);
    }
    return {};
}

inline outcome<void> append_line(const std::string &path, std::string_view line, mode_t mode) {
    const auto cannot = [&](int error_number) {
        return failed("cannot append to " + detail::shell_word(path), error_number);
    };
    if (line.find('\n') != std::string_view::npos)
        return cannot(EINVAL);
    constexpr int flags = O_WRONLY | O_APPEND | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    // First try to open an existing file, then to create one, because only the process that creates
    // the file sets its mode. If another process creates it between the two, open that file.
    unique_fd fd(::open(path.c_str(), flags));
    if (!fd && errno == ENOENT) {
        fd.reset(::open(path.c_str(), flags | O_CREAT | O_EXCL, mode));
        if (fd && ::fchmod(fd.get(), mode) != 0)
            return cannot(errno);
        if (!fd && errno == EEXIST)
            fd.reset(::open(path.c_str(), flags));
    }
    if (!fd)
        return cannot(errno);
    struct stat at {};
    if (::fstat(fd.get(), &at) != 0)
        return cannot(errno);
    if (!S_ISREG(at.st_mode))
        return failed("cannot append to " + detail::shell_word(path) +
                      ": it is not a regular file; move it away");
    std::string whole; // one write, so that the kernel keeps the line in one piece
    whole.reserve(line.size() + 1);
    whole.append(line).push_back('\n');
    const ssize_t n =
        detail::retry_on_eintr([&] { return ::write(fd.get(), whole.data(), whole.size()); });
    if (n < 0)
        return cannot(errno);
    if (static_cast<std::size_t>(n) != whole.size())
        return cannot(ENOSPC); // the rest did not fit; the file now ends in half a line
    return {};
}

} // namespace qvmremote::host
