// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What `doctor` finds: a table of checks over facts, and the findings for people and for programs.
///
/// A check is a function of facts that were gathered before, so that it can be tested without the
/// machine. Only the gathering and the fixes touch the machine.

#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/types.h>

#include <qvmremote/host/failure.hpp>
#include <qvmremote/json.hpp>

namespace qvmremote {

enum class health : std::uint8_t {
    ok,
    warning, ///< commands work, but something is not as it should be
    broken,  ///< commands do not work, or what they must rely on does not hold
};
/// Its name in the JSON and on the screen.
[[nodiscard]] std::string_view name(health state) noexcept;

/// What one check says. The texts are printable: untrusted bytes are escaped before.
struct finding {
    health state = health::ok;
    std::string cause;    ///< what is wrong; for ok, what was looked at
    std::string remedy;   ///< what to do about it; empty when that is unknown or nothing is wrong
    bool fixable = false; ///< `--fix` does it
};
[[nodiscard]] finding good(std::string what);
[[nodiscard]] finding doubtful(std::string cause, std::string remedy);
[[nodiscard]] finding broken(std::string cause, std::string remedy);
/// The same finding, which `--fix` mends.
[[nodiscard]] finding fixable(finding it);
/// With the remedy that the failure names (host::open_trusted), or else the other one.
[[nodiscard]] finding broken(const host::failure &why, const std::string &otherwise);

/// A finding with the check and the qube that it is about.
struct named_finding {
    std::string_view check; ///< programs match on it, so a name does not change
    std::string qube;       ///< empty: the machine as a whole
    finding what;
    bool fixed = false; ///< `--fix` did it
};

/// One row of a table of checks.
template <class Facts>
struct health_check {
    const char *name;
    /// Nothing when the check does not apply, or when another check says why it cannot be done.
    std::optional<finding> (*look)(const Facts &);
    /// Does the remedy of a fixable finding. It never gives anybody a right. Null: there is none.
    host::outcome<void> (*fix)(const Facts &) = nullptr;
};

/// Does all checks of a table, in its order.
template <class Facts>
void examine(std::span<const health_check<Facts>> table, const Facts &facts,
             const std::string &qube, std::vector<named_finding> &to) {
    for (const auto &check : table)
        if (auto found = check.look(facts))
            to.push_back({check.name, qube, std::move(*found)});
}

/// Does the fixes of the table that its findings ask for. Returns the failures.
template <class Facts>
[[nodiscard]] std::vector<host::failure> fix(std::span<const health_check<Facts>> table,
                                             const Facts &facts) {
    std::vector<host::failure> out;
    for (const auto &check : table)
        if (const auto found = check.look(facts); check.fix && found && found->fixable)
            if (auto done = check.fix(facts); !done)
                out.push_back(done.error());
    return out;
}

/// Marks as fixed what `before` called fixable and what is ok now.
void mark_fixed(const std::vector<named_finding> &before, std::vector<named_finding> &now);

[[nodiscard]] health worst_of(const std::vector<named_finding> &all) noexcept;

/// The exit code of `doctor`: 0, or this one when something is broken. A wrong call is 1.
inline constexpr int exit_broken = 3;
[[nodiscard]] int exit_code_of(const std::vector<named_finding> &all) noexcept;

/// One row for people, with its newline.
[[nodiscard]] std::string row_of(const named_finding &one);

/// The members of "result" for programs (doc/schema/doctor.schema.json).
void write_findings(json_writer &to, const std::vector<named_finding> &all);

/// All of it for programs: one JSON object, with a newline (doc/schema/doctor.schema.json). The
/// warnings are lines that were printed for people.
[[nodiscard]] std::string json_of(const std::vector<named_finding> &all,
                                  const std::vector<std::string> &warnings);

/// A file as lstat reports it.
struct file_facts {
    std::string path;
    int error = 0; ///< of errno; the rest is not set then
    mode_t mode = 0;
    uid_t owner = 0;

    [[nodiscard]] bool exists() const noexcept { return error == 0; }
    [[nodiscard]] bool has(mode_t bits) const noexcept { return (mode & bits) != 0; }
};
[[nodiscard]] file_facts look_at(std::string path);

/// How much room is left on a file system.
struct room_facts {
    std::string path;
    host::outcome<void> writable; ///< whether a small file could be written there
    std::uint64_t free_bytes = 0; ///< for this user
    std::uint64_t free_files = 0;
};
/// Writes and removes a small hidden file in the directory, since only that shows a quota or a file
/// system that is read-only.
[[nodiscard]] room_facts room_in(const std::string &directory);
/// Broken when the directory cannot be written, a warning when little room is left.
[[nodiscard]] finding judge_room(const room_facts &room);

/// A program and the version that it says it has.
struct program_facts {
    std::string path;
    host::outcome<std::string> version; ///< printable
};
/// Calls `PATH --version`, which every program of ours answers with "NAME VERSION".
[[nodiscard]] program_facts ask_version(std::string path);

/// Takes rights of others away from a file or directory of ours that is not a symbolic link: its mode
/// keeps only the bits in `most`.
[[nodiscard]] host::outcome<void> narrow_mode(const std::string &path, unsigned most);

} // namespace qvmremote
