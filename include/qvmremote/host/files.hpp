// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The few file operations that have to be right: trusted open, bounded read, atomic write, append.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/host/unique_fd.hpp>

namespace qvmremote::host {

/// What open_trusted is asked to find.
enum class trusted {
    file,      ///< regular, nobody else may write it: policy, configuration, a plug-in
    secret,    ///< regular, nobody else may do anything with it: a key
    directory, ///< nobody else may write it
};

/// Opens for reading what nobody but root and the process's own effective user can have written or
/// put there (invariant I7). Accepted is: an absolute path without "." and ".." in which no
/// component is a symbolic link; the file belongs to root or to that user, is of the kind asked
/// for, and is not writable by group or others; so is every directory above it, except that a
/// sticky one (/tmp) may be writable. ACLs count: their mask shows in the group's bits.
///
/// Symbolic links are refused, not followed, even root's own (/var/run): the message names the
/// target, and who configures a path writes it as it really is.
///
/// Everything is checked on open descriptors, walking from "/", so a name that changes meanwhile
/// does not matter. `error_number` is ENOENT when nothing of that name is there, EPERM when it is
/// there and not to be trusted (the message then ends in the command that mends it), else errno.
[[nodiscard]] inline outcome<unique_fd> open_trusted(const std::string &absolute_path,
                                                     trusted kind);

/// Reads to the end. More than `limit` bytes is a failure (EFBIG); a regular file that is larger is
/// not read at all. The text of a regular file is stored once, so that who reads a key can wipe it.
[[nodiscard]] inline outcome<std::string> read_all(int fd, std::size_t limit);

/// The whole of a regular file, whoever wrote it; symbolic links are followed. Does not block on a
/// FIFO or a device: anything but a regular file is a failure.
[[nodiscard]] inline outcome<std::string> read_text(const std::string &path, std::size_t limit);

/// A directory that open_trusted accepted, for who reads several files in it.
class trusted_directory {
  public:
    /// Fails as open_trusted does.
    [[nodiscard]] static outcome<trusted_directory> open(std::string absolute_path);

    /// The whole of the file `name`, no path, that open_trusted would accept as `kind`; fails as that
    /// and read_all do.
    [[nodiscard]] outcome<std::string> read(const std::string &name, trusted kind,
                                            std::size_t limit) const;

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }

  private:
    trusted_directory(unique_fd fd, std::string path)
        : fd_(std::move(fd)), path_(std::move(path)) {}

    unique_fd fd_;
    std::string path_;
};

/// The whole of a file that open_trusted accepts as `kind`.
[[nodiscard]] inline outcome<std::string> read_trusted(const std::string &absolute_path,
                                                       trusted kind, std::size_t limit);

/// The last `most` bytes of a regular file, or all of a smaller one: for logs that grow while they
/// are read. Symbolic links are followed.
[[nodiscard]] inline outcome<std::string> read_tail(const std::string &path, std::size_t most);

/// Whether a write is on disk when the function returns, or only ordered against other processes.
enum class durability { synced, unsynced };

/// Replaces `path` so that readers, and with durability::synced a machine that lost power, see all
/// of the old contents or all of the new. The file gets exactly `mode`, whatever the umask, and at
/// no moment a wider one. A symbolic link at `path` is replaced, not followed. After a failure the
/// old file stands, unless only the last sync of the directory failed, which the message says.
[[nodiscard]] inline outcome<void> write_atomically(const std::string &path, std::string_view data,
                                                    mode_t mode, durability how);

/// Makes the directory and those above it that are missing, each with exactly `mode`. What is there
/// stays as it is, followed when it is a symbolic link; open_trusted judges it afterwards.
[[nodiscard]] inline outcome<void> make_directories(const std::string &path, mode_t mode);

/// Appends `line` and a newline in one write, so that lines of several processes do not mix. A new
/// file gets exactly `mode`. The line itself holds no newline (EINVAL: it would forge a second
/// one).
[[nodiscard]] inline outcome<void> append_line(const std::string &path, std::string_view line,
                                               mode_t mode);

} // namespace qvmremote::host

#include <qvmremote/host/detail/files_inl.hpp>
