// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The paths of dom0's files, and the settings in remote.conf.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/config.hpp>
#include <qvmremote/host/failure.hpp>

#include "base/containment.hpp"
#include "base/dom0_limits.hpp"

namespace qvmremote::dom0 {

/// The paths in dom0 (COMPAT-V1.md, DESIGN.md), below a root, which is empty except in tests.
class paths {
  public:
    paths() = default;

    /// For tests and the demo. DIR must be absolute, a directory of the caller, and closed to everybody
    /// else, so that nobody else can make files in it.
    [[nodiscard]] static host::outcome<paths> below(const std::string &dir);

    [[nodiscard]] bool is_real() const noexcept { return root_.empty(); }
    [[nodiscard]] const std::string &root() const noexcept { return root_; }
    [[nodiscard]] std::string config() const { return root_ + "/etc/qubes/remote.conf"; }
    [[nodiscard]] std::string keys() const { return root_ + "/etc/qubes/remote.d"; }
    [[nodiscard]] std::string policy() const { return root_ + "/etc/qubes/remote-policy.d"; }
    [[nodiscard]] std::string log() const { return root_ + "/var/log/qubes/qvm-remote.log"; }
    [[nodiscard]] std::string audit_directory() const { return root_ + "/var/log/qvm-remote"; }
    [[nodiscard]] std::string audit() const { return audit_directory() + "/audit.jsonl"; }
    /// The lock of a process that appends to the log.
    [[nodiscard]] std::string audit_lock() const { return audit_directory() + "/lock"; }
    [[nodiscard]] std::string state_directory() const { return root_ + "/var/lib/qvm-remote"; }
    /// Scripts while they run. Not in the state directory, since every account that runs a script
    /// enters it, and not in /run, which confined commands do not see.
    [[nodiscard]] std::string scripts() const { return root_ + "/var/spool/qvm-remote"; }
    /// The records and the output of jobs, QUBE/ID.
    [[nodiscard]] std::string jobs() const { return state_directory() + "/jobs"; }
    [[nodiscard]] std::string index() const { return state_directory() + "/ids.sqlite"; }
    [[nodiscard]] std::string panic() const { return state_directory() + "/panic"; }
    /// Marks that `migrate` was done: it runs only once.
    [[nodiscard]] std::string migrated() const { return state_directory() + "/policy-migrated"; }
    [[nodiscard]] std::string run_directory() const { return root_ + "/run/qvm-remote"; }
    /// Where qrexec looks for the service of its transport.
    [[nodiscard]] std::string qrexec_socket() const {
        return root_ + "/run/qubes-rpc/qvmremote.Exec";
    }
    [[nodiscard]] std::string system_journal() const {
        return root_ + "/run/systemd/journal/socket";
    }
    /// The sockets of the keepers of jobs.
    [[nodiscard]] std::string job_sockets() const { return run_directory() + "/jobs"; }
    [[nodiscard]] std::string control_socket() const { return run_directory() + "/control.sock"; }

  private:
    std::string root_;
};

/// Which transports serve which qube, from QVM_REMOTE_TRANSPORT: a default, then qubes by name. Each
/// has one transport, several with '+' between them, or `both`, which is qvm-run+qrexec.
class transport_choice {
  public:
    /// "qvm-run work=qrexec dev=both". Several words without a qube's name are the default
    /// together. When two words name one qube, the later one counts. Without a default word, the
    /// default is qvm-run.
    [[nodiscard]] static transport_choice parse(std::string_view spec);

    /// All transports that are named, those of the default first.
    [[nodiscard]] const std::vector<std::string> &all() const noexcept { return all_; }
    [[nodiscard]] bool serves(std::string_view transport, std::string_view qube) const;
    /// For people: the names, with commas between them.
    [[nodiscard]] std::string text() const;

  private:
    std::vector<std::string> common_, all_;
    std::map<std::string, std::vector<std::string>, std::less<>> own_;
};

/// How much of the audit log is kept, and how much of it one qube may fill.
struct audit_limits {
    std::uint64_t file_bytes = limits::audit_file;
    std::uint64_t kept_bytes = limits::audit_kept;
    std::int64_t kept_s = limits::audit_kept_s;
    std::uint64_t qube_bytes_per_day = limits::audit_per_qube;
};

/// How much of the output of jobs is kept, and how long ended jobs are remembered.
struct job_limits {
    std::uint64_t job_bytes = limits::job_output;
    std::uint64_t qube_bytes = limits::jobs_output;
    std::int64_t kept_s = limits::jobs_kept_s;
};

/// The daemon's settings from file, environment and command line; later wins.
struct settings {
    config values;
    transport_choice transports;
    /// The qubes listed in QVM_REMOTE_VMS (or its older names) or --vm. Nothing when there is no list;
    /// an empty vector when no name in the list is valid.
    std::optional<std::vector<qube_name>> qubes;
    audit_limits audit;
    job_limits jobs;
    containment ceiling;              ///< QVM_REMOTE_MAX_MEMORY, _PROCESSES, _CPU, _OUTPUT
    std::vector<std::string> ignored; ///< listed names that are not valid, for the log
    std::vector<std::string> warnings;
};

/// Reads remote.conf and overlays the environment. A missing file is like an empty one; a file that
/// others can write is a failure. `vm` and `transport` come from the command line, empty when not
/// given.
[[nodiscard]] host::outcome<settings> load_settings(const paths &where, const std::string &vm,
                                                    const std::string &transport);

} // namespace qvmremote::dom0
