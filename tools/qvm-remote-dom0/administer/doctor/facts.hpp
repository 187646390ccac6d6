// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What `qvm-remote-dom0 doctor` looks at, and its two tables of checks: of this machine, and of each
/// qube that has a key or is listed.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/host/failure.hpp>
#include <qvmremote/policy.hpp>

#include "base/settings.hpp"
#include "common/findings.hpp"
#include "serve/daemon_options.hpp"

namespace qvmremote::dom0 {

/// The daemon's answer to `status json`. An older daemon answers in another form.
struct daemon_facts {
    std::string version;
    std::string trouble; ///< why nothing can be recorded; empty: it can
    std::vector<std::string> policy_trouble;
    std::vector<std::string> connected; ///< qubes
    bool cgroups = false;
    std::string containment; ///< for people
    bool draining = false;
    bool dry_run = false;
};

/// A transport that remote.conf names.
struct transport_facts {
    std::string name;
    host::outcome<std::string> plugin; ///< its path
    std::optional<int> socket_error;   ///< of qrexec's socket, of errno; nothing: not looked at
};

struct machine_facts {
    std::string version; ///< of this program
    std::string program; ///< its path
    host::outcome<void> program_is_ours;
    paths where;

    host::outcome<daemon_facts> daemon = daemon_facts{};
    bool panic = false;

    host::outcome<void> settings_read;
    std::vector<std::string> settings_warnings; ///< with the names in the list that are not valid
    std::vector<transport_facts> transports;

    host::outcome<policy> rules = policy{};
    std::size_t policy_doubts = 0; ///< of lint
    file_facts keys;               ///< the directory
    host::outcome<void> keys_read;
    std::size_t key_count = 0;

    host::outcome<void> audit;         ///< whether the audit log can be written
    std::int64_t audit_is_ahead_s = 0; ///< its last record is so much later than now
    file_facts audit_directory;
    host::outcome<void> log;                 ///< whether the log for people can be written
    std::vector<room_facts> rooms;           ///< of the audit log and of the state
    std::optional<int> system_journal_error; ///< of errno; nothing: not looked at

    std::vector<std::string> programs; ///< paths that must be there
    std::vector<std::string> missing;  ///< those of them that are not, or cannot be run
    std::string qubesd;                ///< its socket; empty: not used
    host::outcome<void> qubesd_answers;
};

/// What the probe in a qube says. All of it is the qube's word.
struct probe_facts {
    std::string agent; ///< its version, printable; empty: there is none
    std::optional<std::int64_t> time;
    std::int64_t asked_at = 0, answered_at = 0; ///< by the clock of dom0
    std::optional<std::uint64_t> free_kib;
    std::string key_mode; ///< octal digits, or "none"
    std::optional<bool>
        key_is_ours;                ///< whether the qube's key is one that is registered and usable
    std::vector<std::string> links; ///< parts of ~/.qvm-remote that are symbolic links
};

struct qube_facts {
    const machine_facts *machine = nullptr;
    qube_name name;
    std::optional<host::failure> key_problem = {}; ///< also when it has expired
    file_facts key_file = {};
    std::string fingerprint = {};
    std::optional<std::int64_t> expires_in_s = {};
    bool listed = true;            ///< false: there is a list without it
    std::string level = {};        ///< in one word; empty: the policy cannot be read
    bool by_qvm_run = false;       ///< qvm-run serves it
    std::optional<bool> runs = {}; ///< nothing: unknown
    bool connected = false;        ///< says the daemon
    std::optional<host::outcome<probe_facts>> probe = {}; ///< nothing: the qube was not asked
};

/// Looks at this machine, and asks the daemon and qubesd.
[[nodiscard]] machine_facts gather_machine(const daemon_options &how);

/// Looks at every qube that has a key or is listed. Those that run are asked, one after the other, for
/// 15 seconds at most; none is started.
[[nodiscard]] std::vector<qube_facts> gather_qubes(const daemon_options &how,
                                                   const machine_facts &machine);

/// All checks, in the order of the way of a command.
[[nodiscard]] std::span<const health_check<machine_facts>> machine_checks();
[[nodiscard]] std::span<const health_check<qube_facts>> qube_checks();

} // namespace qvmremote::dom0
