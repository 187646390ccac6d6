// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Policy and settings as the files say them at this moment, while the daemon goes on with what it
/// loaded: whatever takes rights away counts before a reload.

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

/// Tells whether files are still the ones that were read, without reading them: by device, inode,
/// mode, owner, size and both times of each, and by who may write to the directories above them.
class file_stamps {
  public:
    /// Looks at the files, and at every directory above each. Call it before the files are read, so
    /// that a change while they are read is seen later. A file that is missing is remembered as
    /// missing.
    void take(std::vector<std::string> paths);

    /// Whether anything has changed since. True also while a file is so young that a second change
    /// could carry the same time.
    [[nodiscard]] bool changed() const;

  private:
    struct stamp {
        std::string path;
        bool is_above = false; ///< a directory above: who writes what into it does not matter here
        bool exists = false;
        struct stat seen {};
    };
    [[nodiscard]] static stamp look(std::string path, bool is_above);

    std::vector<stamp> stamps_;
    bool may_change_unseen_ = true;
};

/// What the command line of the daemon says in place of remote.conf.
struct overrides {
    std::string vm, transport;
};

/// Reads the files again when they have changed.
class current_files {
  public:
    current_files(const paths &where, const policy_files &policies, overrides said)
        : where_(where), policies_(policies), said_(std::move(said)) {}

    /// What is in force is read: from here on only what differs from it matters.
    void loaded(const policy &rules);

    /// Reads what has changed since the last call. True when that differs from what was loaded, or
    /// cannot be read, and did not at the last call or did otherwise.
    bool refresh();

    /// Why nothing may be let in: a file that cannot be read or parsed. Empty: all is well.
    [[nodiscard]] const std::string &trouble() const noexcept { return trouble_; }
    /// The rules as they are on disk; nothing where they say what was loaded.
    [[nodiscard]] const std::optional<policy> &rules() const noexcept { return rules_; }
    /// The settings as they are on disk; nothing before the first refresh, or in trouble.
    [[nodiscard]] const std::optional<settings> &values() const noexcept { return values_; }

  private:
    void read();

    const paths &where_;
    const policy_files &policies_;
    overrides said_;
    std::vector<policy_rule> in_force_;
    file_stamps stamps_;
    std::string trouble_;
    std::optional<policy> rules_;
    std::optional<settings> values_;
};

} // namespace qvmremote::dom0
