// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Policy on disk: /etc/qubes/remote-policy.d/*.policy, with the files that authorize writes there.

#pragma once

#include <string>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote::dom0 {

/// The levels that are compiled into this program.
[[nodiscard]] const level_rules &shipped_levels();

/// The directory of the policy. It and each file must belong to root (or the caller), and nobody
/// else may write to them (I7). Files whose names begin with a dot or do not end in `.policy` do
/// not count. The daemon only reads here (I7).
class policy_files {
  public:
    explicit policy_files(std::string directory) : directory_(std::move(directory)) {}

    [[nodiscard]] const std::string &directory() const noexcept { return directory_; }

    /// The names of the files, sorted, without a check of their owners; none when the directory cannot
    /// be read.
    [[nodiscard]] std::vector<std::string> names() const;

    /// The files. A missing directory has none; one bad file is a failure.
    [[nodiscard]] host::outcome<std::vector<policy_file>> read() const;

    /// The policy. The failure names the first mistake by file, line and column.
    [[nodiscard]] host::outcome<policy> load() const;

    /// Writes what `authorize --level` says about a qube to 50-QUBE.policy.
    [[nodiscard]] host::outcome<void> write_level(const qube_name &qube, access_level level) const;
    /// Removes that file, if there is one.
    [[nodiscard]] host::outcome<void> remove_level(const qube_name &qube) const;
    [[nodiscard]] bool has_level(const qube_name &qube) const;

  private:
    [[nodiscard]] std::string level_file(const qube_name &qube) const {
        return "50-" + qube.text() + ".policy";
    }

    std::string directory_;
};

/// Whether any rule may match this qube: by name, by @anyvm, or by a tag that it may have.
[[nodiscard]] bool has_rules(const policy &rules, const qube_name &qube);

/// The level of a qube in one word, for lists: a level, "none" without a rule, or "rules" when one word
/// cannot say it.
[[nodiscard]] std::string level_word(const policy &rules, const qube_name &qube);

} // namespace qvmremote::dom0
