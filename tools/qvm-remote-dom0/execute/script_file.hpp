// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// A script as a file in dom0, while it runs.

#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>

namespace qvmremote::dom0 {

/// The approved bytes, in a file that only root (or the user of the daemon) can change. A file is
/// needed because interpreters differ in how they read /dev/fd/N, and some find nothing there. The
/// destructor removes the file.
class script_file {
  public:
    script_file() = default;

    /// Writes `bytes` into `directory`/`name`, which must not exist. `group` may read and run it.
    [[nodiscard]] static host::outcome<script_file> make(const std::string &directory,
                                                         const std::string &name,
                                                         std::string_view bytes, gid_t group);
    script_file(script_file &&other) noexcept : path_(std::exchange(other.path_, {})) {}
    script_file &operator=(script_file &&other) noexcept {
        std::swap(path_, other.path_);
        return *this;
    }
    ~script_file();

    [[nodiscard]] const std::string &path() const noexcept { return path_; }
    /// Leaves the file for a job, which outlives this object.
    void leave() noexcept { path_.clear(); }

  private:
    explicit script_file(std::string path) : path_(std::move(path)) {}

    std::string path_; // empty: none
};

/// Makes the directory if it is missing, and removes files that a killed daemon left in it, except
/// those that `is_used` accepts.
[[nodiscard]] host::outcome<void>
prepare_scripts(const std::string &directory,
                const std::function<bool(const std::string &name)> &is_used = {});

} // namespace qvmremote::dom0
