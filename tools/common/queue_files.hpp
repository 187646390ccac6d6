// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The directories of ~/.qvm-remote/queue, as both the client and the agent use them (COMPAT-V1.md).
/// Names in them are anybody's of this user: a file is opened only when it is a regular one, and
/// never waited for.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote {

/// Opened once, so that what is worked in is what was found.
struct queue_directories {
    host::unique_fd base, pending, running, results;

    /// Makes those below `base` (~/.qvm-remote, which exists) where they are missing, 0700.
    [[nodiscard]] static host::outcome<queue_directories> open(const std::string &base);

    /// Removes files older than an hour from all three.
    void sweep() const;
};

/// One directory, made when it is not there, 0700; empty when it cannot be.
[[nodiscard]] host::unique_fd open_directory(int parent, const char *name);

/// A regular file for reading and what fstat says of it; empty when there is none.
[[nodiscard]] host::unique_fd open_regular(int directory, const std::string &name, struct stat &st);
[[nodiscard]] bool is_regular(int directory, const std::string &name, struct stat &st);

/// The names in an open directory, in no order.
[[nodiscard]] std::vector<std::string> names_in(int directory);

/// All of `text`, or false and errno.
[[nodiscard]] bool write_all(int fd, std::string_view text);

/// Writes a file, 0600, under a name with a dot before it, which no reader of the queue looks at.
/// False and errno when that failed; then nothing is left behind.
[[nodiscard]] bool write_hidden(int directory, const std::string &name, std::string_view text);

/// Gives a file of write_hidden its name.
[[nodiscard]] bool publish(int directory, const std::string &name);

/// Both: a reader sees all of it or nothing. False and errno when that failed; then nothing is left
/// behind.
[[nodiscard]] bool write_file(int directory, const std::string &name, std::string_view text);

/// Adds a watch to an inotify descriptor for an open directory itself, whatever its path has become.
[[nodiscard]] int watch_directory(int inotify, int directory, std::uint32_t events);

} // namespace qvmremote
