// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What a subcommand says of itself: lines for people on standard error, and with --json one object on
/// standard output too (doc/JSON.md).

#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <qvmremote/fault.hpp>

namespace qvmremote::dom0 {

/// There is one, since a program has one standard output.
class report {
  public:
    [[nodiscard]] static report &instance();

    void use_json() noexcept { is_json_ = true; }
    [[nodiscard]] bool is_json() const noexcept { return is_json_; }

    /// The member "result". Only with --json.
    [[nodiscard]] nlohmann::ordered_json &result() noexcept { return result_; }
    /// The subcommand prints JSON of a form of its own, so there is no object of this one.
    void has_own_form() noexcept { has_own_form_ = true; }

    /// Prints "qvm-remote-dom0: " and the line. The first one is the error if the subcommand fails; the
    /// others are warnings. A name never changes (doc/JSON.md).
    void say(error_name name, const std::string &what);

    /// Prints a line in the same way. It is a warning, whatever the exit code of the subcommand.
    void warn(const std::string &what);

    /// With --json prints the object. Returns the exit code: `code`, unless standard output failed, with
    /// --json or without.
    [[nodiscard]] int end(int code);

  private:
    void print_object(int code) const;

    struct line {
        std::string name;
        std::string text;
    };

    bool is_json_ = false;
    bool has_own_form_ = false;
    nlohmann::ordered_json result_;
    std::vector<line> lines_;
    std::vector<std::string> warnings_;
};

/// The value as one line of JSON. A byte that is not UTF-8 becomes U+FFFD.
[[nodiscard]] std::string dumped(const nlohmann::ordered_json &value);

} // namespace qvmremote::dom0
