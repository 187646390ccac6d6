// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// What the client says of itself: lines for people on standard error, and with --json also one
/// object on standard output, or one object a line (doc/JSON.md).

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <qvmremote/fault.hpp>
#include <qvmremote/host/client.hpp>
#include <qvmremote/json.hpp>

namespace qvmremote::qube {

enum class report_form : std::uint8_t { text, object, lines };

/// There is one, since a program has one standard output and one standard error.
class report {
  public:
    [[nodiscard]] static report &instance();
    /// Prints "qvm-remote: " and one line on standard error, and nothing else.
    static void print(const std::string &what);

    /// Set it as soon as it is known: mistakes before that are not in the object.
    void set_form(report_form form) noexcept { form_ = form; }
    [[nodiscard]] bool is_json() const noexcept { return form_ != report_form::text; }
    [[nodiscard]] bool has_lines() const noexcept { return form_ == report_form::lines; }

    /// Print the line. The first error is the object's; later ones are among the
    /// warnings.
    void error(error_name name, const std::string &what);
    void warning(const std::string &what);

    /// The members of "result". The first call begins the object. Only with --json.
    [[nodiscard]] json_writer &result();

    /// One more line of --json=lines: the caller writes it into a text of its own.
    void add_line(std::string_view json);
    /// Writes what standard output takes without waiting. Returns whether nothing is left.
    [[nodiscard]] bool flush();
    [[nodiscard]] const host::descriptor_sink &out() const noexcept { return out_; }

    /// With --json completes the object. Returns the exit code: `code`, unless standard output failed,
    /// with --json or without.
    [[nodiscard]] int end(int code);

  private:
    struct named_error {
        std::string_view name;
        std::string what;
    };
    void begin_object();
    [[nodiscard]] bool write_out();

    report_form form_ = report_form::text;
    std::optional<named_error> error_;
    std::vector<std::string> warnings_;
    std::string pending_; // not written yet
    host::descriptor_sink out_{1};
    std::optional<json_writer> object_;
    bool has_result_ = false;
};

/// While it lives, what would be reported is kept here, and nothing is printed. There is one at a time.
class held_complaints {
  public:
    held_complaints();
    ~held_complaints();
    held_complaints(const held_complaints &) = delete;
    held_complaints &operator=(const held_complaints &) = delete;

    /// The lines, with "; " between them. They are printable.
    [[nodiscard]] std::string text() const;
};

/// Shorthand for report::error() and report::warning().
void complain(error_name name, const std::string &what);
void warn(const std::string &what);

} // namespace qvmremote::qube
