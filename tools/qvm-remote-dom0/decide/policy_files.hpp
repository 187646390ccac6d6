// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Policy on disk: /etc/qubes/remote-policy.d/*.policy, and the files that authorize writes there.

#pragma once

#include <string>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/policy.hpp>

namespace qvmremote::dom0 {

/// The levels as they are compiled in.
[[nodiscard]] const level_rules &shipped_levels();

/// The directory. It and each file must be root's (or the caller's own) and closed to other writers
/// (I7). Files whose names begin with a dot or do not end in `.policy` do not count. The daemon
/// reads here and never writes (I7).
class policy_files {
  public:
    explicit policy_files(std::string directory) : directory_(std::move(directory)) {}

    [[nodiscard]] const std::string &directory() const noexcept { return directory_; }

    /// Their names, sorted, whoever wrote them; none when the directory cannot be read.
    [[nodiscard]] std::vector<std::string> names() const;

    /// Their texts. A missing directory holds none; one bad file is a failure.
    [[nodiscard]] host::outcome<std::vector<policy_file>> read() const;

    /// The policy they make. The failure names the first mistake by file, line and column.
    [[nodiscard]] host::outcome<policy> load() const;

    /// What `authorize --level` says about a qube, in a file of its own: 50-QUBE.policy.
    [[nodiscard]] host::outcome<void> write_level(const qube_name &qube, access_level level) const;
    /// Takes that file away; that there is none is no failure.
    [[nodiscard]] host::outcome<void> remove_level(const qube_name &qube) const;
    [[nodiscard]] bool has_level(const qube_name &qube) const;

  private:
    [[nodiscard]] std::string level_file(const qube_name &qube) const {
        return "50-" + qube.text() + ".policy";
    }

    std::string directory_;
};

/// Whether any rule may be about this qube: by name, by @anyvm, or by a tag that it may have.
[[nodiscard]] bool has_rules(const policy &rules, const qube_name &qube);

/// The level of a qube in one word for lists: a level, or "none" without a rule, "rules" where it
/// takes more than a word.
[[nodiscard]] std::string level_word(const policy &rules, const qube_name &qube);

} // namespace qvmremote::dom0
