// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Makes a request from what a user typed. Both qvm-remote, which sends it, and `policy check` use
/// this, so that the same words mean the same request.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <qvmremote/envelope.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// How the words of a command line are meant.
enum class command_form : std::uint8_t {
    line,   ///< one line for a shell; without words, the text is the command line
    argv,   ///< `--exec`: a program and its arguments, without a shell
    script, ///< `--script`: arguments of the text
};

/// A command line after its options, and the text that came with it.
struct typed_command {
    command_form form = command_form::line;
    std::vector<std::string> words;
    std::string text;       ///< of the script's file; or of standard input, if there are no words
    bool has_input = false; ///< standard input may hold input for the command
};

/// The part of an envelope that the user's words decide.
struct typed_request {
    request_kind kind = request_kind::shell;
    std::vector<std::string> arguments; ///< an argv, or a script's arguments
    std::string body;                   ///< a command line or a script
    bool stdin_live = false;

    /// The request as one text, for records and screens: the argv joined by blanks, or the body.
    [[nodiscard]] std::string shown() const;
};

namespace detail {
[[nodiscard]] inline std::string joined(const std::vector<std::string> &words) {
    std::string out;
    for (std::size_t i = 0; i < words.size(); ++i)
        out.append(i > 0 ? " " : "").append(words[i]);
    return out;
}
} // namespace detail

inline std::string typed_request::shown() const {
    return kind == request_kind::exec ? detail::joined(arguments) : body;
}

/// Makes the request. Words of a line are joined by one blank each, as ssh joins them. Fails with
/// errc::command_empty when nothing is left to run, errc::command_too_large when the body exceeds
/// limits::command, as envelope::check_arguments does, and with errc::binary_content at the first NUL of a command line.
[[nodiscard]] inline result<typed_request> request_of(typed_command typed) {
    typed_request out;
    out.stdin_live = typed.has_input;
    switch (typed.form) {
    case command_form::argv:
        out.kind = request_kind::exec;
        out.arguments = std::move(typed.words);
        if (out.arguments.empty() || out.arguments[0].empty())
            return fail(errc::command_empty);
        if (auto sane = envelope::check_arguments(out.arguments, 0); !sane)
            return tl::unexpected(sane.error());
        return out;
    case command_form::script:
        out.kind = request_kind::script;
        out.arguments = std::move(typed.words);
        out.body = std::move(typed.text);
        break;
    case command_form::line:
        // If the text came through standard input, the command cannot read that input again.
        out.stdin_live = out.stdin_live && !typed.words.empty();
        out.body = typed.words.empty() ? std::move(typed.text) : detail::joined(typed.words);
        break;
    }
    if (out.body.find_first_not_of(" \t\r\n") == std::string::npos)
        return fail(errc::command_empty);
    if (out.body.size() > limits::command)
        return fail(errc::command_too_large, limits::command);
    if (auto sane = envelope::check_arguments(out.arguments, out.body.size()); !sane)
        return tl::unexpected(sane.error());
    if (auto content = envelope::check_content(out.kind, out.body); !content)
        return tl::unexpected(content.error());
    return out;
}

} // namespace qvmremote
