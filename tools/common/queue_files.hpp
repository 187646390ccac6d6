// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The directories of ~/.qvm-remote/queue, as both the client and the agent use them (COMPAT-V1.md).
/// Any process of this user can make names in them, so only a regular file is opened, without waiting.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <sys/stat.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote {

/// Each directory is opened once, so that it stays the same one even if its path changes.
struct queue_directories {
    host::unique_fd base, pending, running, results;

    /// Makes the directories below `base` (~/.qvm-remote, which exists) if they are missing, 0700.
    [[nodiscard]] static host::outcome<queue_directories> open(const std::string &base);

    /// Removes files older than an hour from all three.
    void sweep() const;
};

/// Opens one directory, and makes it if it is missing, 0700; empty after a failure.
[[nodiscard]] host::unique_fd open_directory(int parent, const char *name);

/// Opens a regular file for reading, with its fstat; empty when there is none.
[[nodiscard]] host::unique_fd open_regular(int directory, const std::string &name, struct stat &st);
[[nodiscard]] bool is_regular(int directory, const std::string &name, struct stat &st);

/// host::names_in; empty after a failure, since a directory that is gone holds no entries.
[[nodiscard]] std::vector<std::string> names_in(int directory);

/// Writes a file, 0600, with a dot before its name, so that readers of the queue ignore it. After a
/// failure, false with errno, and no file is left.
[[nodiscard]] bool write_hidden(int directory, const std::string &name, std::string_view text);

/// Gives a file of write_hidden its final name.
[[nodiscard]] bool publish(int directory, const std::string &name);

/// Does both, so that a reader sees all of the file or nothing. After a failure, false with errno, and
/// no file is left.
[[nodiscard]] bool write_file(int directory, const std::string &name, std::string_view text);

/// Adds an inotify watch for an open directory, even if its path has changed.
[[nodiscard]] int watch_directory(int inotify, int directory, std::uint32_t events);

} // namespace qvmremote
