// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Policy and settings as they are on disk now. The daemon uses what it has loaded, but a change on
/// disk that takes rights away counts before a reload.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <sys/stat.h>

#include <qvmremote/policy.hpp>

#include "base/settings.hpp"
#include "decide/policy_files.hpp"

namespace qvmremote::dom0 {

/// Tells whether files have changed since they were read, without reading them: it compares device,
/// inode, mode, owner, size and both times of each, and who may write to the directories above.
class file_stamps {
  public:
    /// Remembers the files, and every directory above each. Call it before the files are read, so that
    /// a change during the reading is seen later. A missing file is remembered as missing.
    void take(std::vector<std::string> paths);

    /// Whether anything has changed since take(). Also true while a file is so new that a second
    /// change could have the same time.
    [[nodiscard]] bool changed() const;

  private:
    struct stamp {
        std::string path;
        bool is_above = false; ///< a directory above: changes of its contents do not count
        bool exists = false;
        struct stat seen {};
    };
    [[nodiscard]] static stamp look(std::string path, bool is_above);

    std::vector<stamp> stamps_;
    bool may_change_unseen_ = true;
};

/// Settings from the daemon's command line, which replace those of remote.conf.
struct overrides {
    std::string vm, transport;
};

/// Reads the files again when they have changed.
class current_files {
  public:
    current_files(const paths &where, const policy_files &policies, overrides replaced)
        : where_(where), policies_(policies), overrides_(std::move(replaced)) {}

    /// Tells what was loaded: from now on only differences from it count.
    void loaded(const policy &rules);

    /// Reads what has changed since the last call. True when there is a new difference from what was
    /// loaded, or a new failure.
    bool refresh();

    /// Why every request is refused: a file cannot be read or parsed. Empty when all is well.
    [[nodiscard]] const std::string &trouble() const noexcept { return trouble_; }
    /// The rules on disk; nothing when they are the loaded ones.
    [[nodiscard]] const std::optional<policy> &rules() const noexcept { return rules_; }
    /// The settings on disk; nothing before the first refresh, or when they cannot be read.
    [[nodiscard]] const std::optional<settings> &values() const noexcept { return values_; }

  private:
    void read();

    const paths &where_;
    const policy_files &policies_;
    overrides overrides_;
    std::vector<policy_rule> in_force_;
    file_stamps stamps_;
    std::string trouble_;
    std::optional<policy> rules_;
    std::optional<settings> values_;
};

} // namespace qvmremote::dom0
