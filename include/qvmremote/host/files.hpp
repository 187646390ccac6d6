// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The file operations that security depends on: trusted open, bounded read, atomic write, append.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::host {

/// The kind of file that open_trusted accepts.
enum class trusted {
    file,      ///< regular, nobody else may write to it: policy, configuration, a plug-in
    secret,    ///< regular, nobody else may read or write it: a key
    directory, ///< nobody else may write to it
};

/// Opens for reading a file that only root and the process's own effective user can have written or
/// put there (invariant I7). It accepts an absolute path without "." and ".." in which no component
/// is a symbolic link. The file belongs to root or to that user, has the kind that was asked for,
/// and group and others may not write to it. The same holds for every directory above it, except
/// that a sticky one (/tmp) may be writable. ACLs count: their mask shows in the group's bits.
///
/// Symbolic links are refused, even those of root (/var/run): the message names the target, and the
/// path in the configuration must be the real one.
///
/// Everything is checked on open descriptors, from "/" on, so it does not matter if a name changes
/// meanwhile. `error_number` is ENOENT when the file does not exist, EPERM when it exists and cannot
/// be trusted (the message then ends with the command that repairs it), else errno.
[[nodiscard]] inline outcome<unique_fd> open_trusted(const std::string &absolute_path,
                                                     trusted kind);

/// Reads to the end. More than `limit` bytes is a failure (EFBIG); a larger regular file is not read
/// at all. The text of a regular file is stored only once, so that the caller can wipe a key.
[[nodiscard]] inline outcome<std::string> read_all(int fd, std::size_t limit);

/// The whole of a regular file, whoever wrote it; symbolic links are followed. Anything but a
/// regular file is a failure, so it does not block on a FIFO or a device.
[[nodiscard]] inline outcome<std::string> read_text(const std::string &path, std::size_t limit);

/// Writes all of `data`: continues after a partial write and after a signal. Returns false, with
/// errno, when a write fails; a part may be written then. On a non-blocking descriptor errno is
/// EAGAIN as soon as the other end accepts no more.
[[nodiscard]] inline bool write_all(int fd, std::string_view data) noexcept;

/// Which entries names_in lists.
enum class listed {
    all,
    directories, ///< not a symbolic link to one
};

/// The names in a directory, sorted by their bytes, without "." and "..". `directory` is borrowed
/// and may have been opened with O_PATH; its position does not move. An entry that appears or
/// vanishes meanwhile may be in the list or not. Any error is a failure with errno; the list is
/// never a part of the names. The names are not checked: whoever may write to the directory has
/// chosen them.
[[nodiscard]] inline outcome<std::vector<std::string>> names_in(int directory,
                                                                listed which = listed::all);
/// The same by a path. Symbolic links in it are followed.
[[nodiscard]] inline outcome<std::vector<std::string>> names_in(const std::string &path,
                                                                listed which = listed::all);

/// A directory that open_trusted accepted, to read several files in it.
class trusted_directory {
  public:
    /// Fails as open_trusted does.
    [[nodiscard]] static outcome<trusted_directory> open(std::string absolute_path);

    /// The whole of the file `name` (not a path) if open_trusted would accept it as `kind`; fails as
    /// open_trusted and read_all do.
    [[nodiscard]] outcome<std::string> read(const std::string &name, trusted kind,
                                            std::size_t limit) const;

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    trusted_directory(unique_fd fd, std::string path)
        : fd_(std::move(fd)), path_(std::move(path)) {}

    unique_fd fd_;
    std::string path_;
};

/// The whole of a file that open_trusted accepts as `kind`. Fails as open_trusted and read_all do.
[[nodiscard]] inline outcome<std::string> read_trusted(const std::string &absolute_path,
                                                       trusted kind, std::size_t limit);

/// The last `most` bytes of a regular file, or all of a smaller one, for logs that grow while they
/// are read. Symbolic links are followed. Fails as read_text does for anything but a regular file.
[[nodiscard]] inline outcome<std::string> read_tail(const std::string &path, std::size_t most);

/// Whether a write is on disk when the function returns, or only visible to other processes.
enum class durability { synced, unsynced };

/// Replaces `path` so that readers see all of the old contents or all of the new; with
/// durability::synced this also holds after a power failure. The file gets exactly `mode`, whatever
/// the umask, and never a wider one. A symbolic link at `path` is replaced, not followed. After a
/// failure the old file is still there, unless only the last sync of the directory failed; the
/// message then says so.
[[nodiscard]] inline outcome<void> write_atomically(const std::string &path, std::string_view data,
                                                    mode_t mode, durability how);

/// Makes the directory and those above it that are missing, each with exactly `mode`. What exists
/// stays as it is, and symbolic links are followed; open_trusted checks it afterwards.
[[nodiscard]] inline outcome<void> make_directories(const std::string &path, mode_t mode);

/// Appends `line` and a newline in one write, so that lines of several processes do not mix. A new
/// file gets exactly `mode`. A newline in the line is a failure (EINVAL), because it would forge a
/// second line.
[[nodiscard]] inline outcome<void> append_line(const std::string &path, std::string_view line,
                                               mode_t mode);

} // namespace qvmremote::host

#include <qvmremote/host/detail/files_inl.hpp>
