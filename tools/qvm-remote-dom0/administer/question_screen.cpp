// SPDX-License-Identifier: GPL-2.0-or-later
#include "administer/question_screen.hpp"

#include <cstdint>
#include <string_view>

#include <nlohmann/json.hpp>

#include <qvmremote/display.hpp>

namespace qvmremote::dom0 {

namespace {

using nlohmann::ordered_json;

// Turns a text of the JSON back into its bytes. A text in another form is shown unchanged.
std::string bytes_of(const ordered_json &shown) {
    const std::string text = shown.is_string() ? shown.get<std::string>() : shown.dump();
    return from_terminal(text).value_or(text);
}

void add_words(field_rows &to, const std::string &label, const ordered_json &q, const char *field) {
    const ordered_json words = q.value(field, ordered_json::array());
    for (std::size_t i = 0; i < words.size(); ++i)
        to.add_word(label + "[" + std::to_string(i) + "]", bytes_of(words[i]));
    const std::size_t count = q.value(std::string(field) + "_count", words.size());
    if (count != words.size())
        to.add_fact(label, std::to_string(count - words.size()) + " more are not shown here");
}

void add_text(field_rows &to, const char *label, const ordered_json &q, const char *field,
              const char *size_field) {
    const std::string text = bytes_of(q.value(field, ordered_json("")));
    to.add_text(label, text);
    const std::size_t size = q.value(size_field, text.size());
    if (size != text.size())
        to.add_fact(label, std::to_string(size - text.size()) + " more bytes are not shown here");
}

std::string limits_of(const ordered_json &q) {
    const auto timeout = q.value("timeout_s", std::uint64_t{0});
    std::string out = timeout == 0 ? "no time-out" : std::to_string(timeout) + " s";
    const ordered_json limits = q.value("limits", ordered_json::object());
    for (const auto &[name, value] : limits.items())
        out += ", " + name + "=" + value.dump() + (name == "cpu" ? "%" : "");
    return out;
}

} // namespace

std::vector<std::string> rows_of(const ordered_json &q, std::size_t width) {
    field_rows out(width);
    const bool in_shell = q.value("shell", true);
    const std::string serial = std::to_string(q.value("serial", std::uint64_t{0}));
    out.add_fact("serial", serial + ", " +
                               std::to_string(q.value("left_ms", std::uint64_t{0}) / 1000) +
                               " s left");
    out.add_fact("qube", q.value("qube", ""));
    out.add_fact("kind", q.value("kind", "") + (in_shell ? ", in a shell" : ", no shell") +
                             (q.value("may_last", false) ? "" : ", once at a time"));
    out.add_fact("account", q.value("user", ""));
    out.add_fact("limits", limits_of(q));
    out.add_fact("terminal", q.value("tty", false) ? "yes" : "no");
    if (q.value("detached", false))
        out.add_fact("detached", "goes on when its session has ended");
    add_words(out, "env", q, "environment");
    out.add_fact("stdin", q.value("stdin", ""));
    if (q.contains("stdin_text"))
        add_text(out, "stdin", q, "stdin_text", "stdin_bytes");
    if (in_shell) {
        add_words(out, "arg", q, "arguments");
        add_text(out, "script", q, "script", "script_bytes");
    } else {
        add_words(out, "argv", q, "argv");
    }
    out.add_fact("sha256", q.value("digest", ""));
    if (!q.value("complete", true))
        out.add_fact("incomplete", "all of it: qvm-remote-dom0 approvals show " + serial);
    return out.rows();
}

} // namespace qvmremote::dom0
