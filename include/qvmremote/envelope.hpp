// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The request as signed bytes: what is to run, and how (doc/PROTOCOL.md, "Request header").

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <qvmremote/bytes.hpp>
#include <qvmremote/command_id.hpp>
#include <qvmremote/digest.hpp>
#include <qvmremote/error.hpp>
#include <qvmremote/frame.hpp>
#include <qvmremote/job.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote {

/// What is asked for. Numbers are frozen.
enum class request_kind : std::uint8_t {
    shell = 1,  ///< the body is a command line for bash
    exec = 2,   ///< the arguments are an argv, run without a shell
    script = 3, ///< the body is a file, run by bash with the arguments
    ping = 4,   ///< nothing runs; the answer proves both ends and the key
    status = 5, ///< nothing runs; dom0 describes itself
    job = 6,    ///< about a job of this qube; the arguments are a job_request. Needs feature::jobs
};

[[nodiscard]] constexpr std::string_view name(request_kind kind) noexcept {
    switch (kind) {
    case request_kind::shell:
        return "shell";
    case request_kind::exec:
        return "exec";
    case request_kind::script:
        return "script";
    case request_kind::ping:
        return "ping";
    case request_kind::status:
        return "status";
    case request_kind::job:
        return "job";
    }
    return "unknown";
}

/// Abilities that dom0 announces in HELLO and a request may use. Each is one bit.
namespace feature {
inline constexpr std::uint32_t gmac = 1u << 0; ///< large data frames carry AES-256-GMAC tags
inline constexpr std::uint32_t no_wait =
    1u << 1; ///< END follows the first process, without waiting for output of what it left running
inline constexpr std::uint32_t notices =
    1u << 2; ///< a session that runs may get words for people, in PENDING with serial 0
inline constexpr std::uint32_t long_arguments = 1u << 3; ///< the arguments are in the body
inline constexpr std::uint32_t terminal = 1u << 4;       ///< the command may run in a terminal
inline constexpr std::uint32_t jobs = 1u << 5;           ///< a command may outlive its session
inline constexpr std::uint32_t known = gmac | no_wait | notices | long_arguments | terminal | jobs;
} // namespace feature

/// One request. A default-constructed one asks for nothing and does not encode.
struct envelope {
    std::array<std::uint8_t, 16> nonce{}; ///< random, so that two equal requests differ
    request_kind kind{};
    bool stdin_live = false; ///< stdin is streamed; else the command reads /dev/null
    bool tty = false;        ///< runs in a terminal; goes with feature::terminal
    bool detach = false;     ///< runs as a job, which outlives the session; needs feature::jobs
    bool dry_run = false;    ///< decide, record, and run nothing
    std::uint32_t timeout_s = limits::default_timeout_s; ///< 0: none
    std::uint32_t features = 0;
    /// Whether output that comes after the first process has ended is left out.
    [[nodiscard]] bool ends_with_first_process() const noexcept {
        return (features & feature::no_wait) != 0;
    }
    std::uint16_t columns = 0, rows = 0;       ///< of the terminal, with tty
    std::optional<command_id> id;              ///< always present in what decode returns
    std::uint32_t protocol = protocol_version; ///< 1: an entry of the queue. Not sent
    std::vector<std::pair<std::string, std::string>> environment;
    std::vector<std::string> arguments;

    /// The body: a command line or a script, at most limits::command bytes. With
    /// feature::long_arguments it begins with a u32 and that many bytes of arguments, with a NUL
    /// after each. A small body is in the header; a larger one follows the header, which holds its
    /// length and digest.
    std::string body;
    bool body_follows = false;
    std::uint32_t body_length = 0;
    digest256 body_digest{};

    /// Sets the body, and chooses whether it travels in the header.
    void set_body(std::string text) {
        body = std::move(text);
        body_length = static_cast<std::uint32_t>(body.size());
        body_follows = body.size() > limits::inline_body;
        body_digest = body_follows ? sha256(as_bytes(body)) : digest256{};
    }

    /// Whether the arguments travel at the beginning of the body, and are not known yet.
    [[nodiscard]] bool has_packed_arguments() const noexcept {
        return (features & feature::long_arguments) != 0;
    }

    /// Makes a request with long arguments fit the header limit: moves the body out of the header
    /// if that is enough, else moves the arguments to the beginning of the body
    /// (feature::long_arguments). Fails as check_arguments does, and with errc::command_too_large
    /// when arguments and body exceed limits::command.
    [[nodiscard]] result<std::monostate> make_header_fit() {
        if (auto sane = check_arguments(arguments, body.size()); !sane)
            return sane;
        if ((kind != request_kind::exec && kind != request_kind::script) || fits_header())
            return std::monostate{};
        if (!body.empty()) {
            body_follows = true;
            body_digest = sha256(as_bytes(body));
            if (fits_header())
                return std::monostate{};
        }
        const std::size_t size = packed_size(arguments);
        bytes packed;
        packed.reserve(4 + size + body.size());
        byte_writer w(packed);
        w.u32(static_cast<std::uint32_t>(size));
        for (const std::string &argument : arguments) {
            w.put(argument);
            w.u8(0);
        }
        w.put(body);
        arguments.clear();
        features |= feature::long_arguments;
        set_body(std::string(as_text(packed)));
        body_follows = true;
        body_digest = sha256(as_bytes(body));
        return std::monostate{};
    }

    /// Undoes make_header_fit in dom0, after the body has come and matches its digest: arguments
    /// and body are then as if both had come in the header. Does nothing if the arguments were in
    /// the header. Fails with errc::bad_envelope when the body has another form, with
    /// errc::command_empty when no program or script is left, and as check_arguments does.
    [[nodiscard]] result<std::monostate> unpack_arguments() {
        if (!has_packed_arguments())
            return std::monostate{};
        byte_reader r(as_bytes(body));
        const auto size = r.u32();
        const auto block = size ? r.take(*size) : fail(errc::bad_envelope);
        if (!block || block->empty() || block->back() != 0)
            return fail(errc::bad_envelope);
        std::string_view left = as_text(*block);
        const auto count = static_cast<std::size_t>(std::count(left.begin(), left.end(), '\0'));
        if (count > limits::long_arguments)
            return fail(errc::too_many_arguments, limits::long_arguments);
        std::vector<std::string> words;
        words.reserve(count);
        while (!left.empty()) {
            const std::size_t end = left.find('\0');
            words.emplace_back(left.substr(0, end));
            left.remove_prefix(end + 1);
        }
        std::string rest = body.substr(4 + *size);
        if (auto sane = check_arguments(words, rest.size()); !sane)
            return sane;
        if (kind == request_kind::exec ? words[0].empty() : rest.empty())
            return fail(errc::command_empty);
        if (kind == request_kind::exec && !rest.empty())
            return fail(errc::bad_envelope);
        arguments = std::move(words);
        body = std::move(rest);
        body_length = static_cast<std::uint32_t>(body.size());
        body_follows = false;
        body_digest = {};
        features &= ~feature::long_arguments;
        return std::monostate{};
    }

    /// Checks that a request can carry these arguments together with a body of `body_size` bytes,
    /// by the limits of Linux and ours. Fails with errc::argument_too_large (the offset is the
    /// number of the word), too_many_arguments, or command_too_large if arguments and body together
    /// are too large.
    [[nodiscard]] static result<std::monostate>
    check_arguments(std::span<const std::string> arguments, std::size_t body_size) {
        if (arguments.size() > limits::long_arguments)
            return fail(errc::too_many_arguments, limits::long_arguments);
        for (std::size_t i = 0; i < arguments.size(); ++i)
            if (arguments[i].size() > limits::argument)
                return fail(errc::argument_too_large, i);
        if (!arguments.empty() && 4 + packed_size(arguments) + body_size > limits::command)
            return fail(errc::command_too_large, limits::command);
        return std::monostate{};
    }

    /// The header's bytes. Fails with errc::frame_too_large when they exceed
    /// limits::request_header, errc::command_too_large when the body exceeds limits::command,
    /// errc::bad_envelope when there is no ID or the body was not set by set_body. It also fails
    /// where decode would fail, so what encodes also decodes.
    [[nodiscard]] result<bytes> encode() const {
        if (body.size() > limits::command || body_length > limits::command)
            return fail(errc::command_too_large);
        // An envelope that decode returned lacks the body that follows it.
        if (body.size() != body_length && !(body_follows && body.empty()))
            return fail(errc::bad_envelope);
        bytes out;
        out.reserve(256 + (body_follows ? 0 : body.size()));
        byte_writer w(out);
        w.u16(protocol_version);
        w.put(nonce);
        w.u8(static_cast<std::uint8_t>(kind));
        w.u8(static_cast<std::uint8_t>((stdin_live ? 1 : 0) | (tty ? 2 : 0) | (detach ? 4 : 0) |
                                       (dry_run ? 8 : 0)));
        w.u32(timeout_s);
        w.u32(features);
        w.u16(columns);
        w.u16(rows);
        if (!id || environment.size() > limits::environment || arguments.size() > limits::arguments)
            return fail(errc::bad_envelope);
        w.u8(static_cast<std::uint8_t>(id->text().size()));
        w.put(id->text());
        w.u16(static_cast<std::uint16_t>(environment.size()));
        for (const auto &[key, value] : environment)
            if (!put_string(w, key) || !put_string(w, value))
                return fail(errc::frame_too_large);
        w.u16(static_cast<std::uint16_t>(arguments.size()));
        for (const std::string &argument : arguments)
            if (!put_string(w, argument))
                return fail(errc::frame_too_large);
        w.u8(body_follows ? 1 : 0);
        w.u32(body_length);
        if (body_follows)
            w.put(body_digest);
        else
            w.put(body);
        if (auto again = decode(out); !again)
            return tl::unexpected(again.error());
        if (auto content = check_content(kind, body); !content)
            return tl::unexpected(content.error());
        return out;
    }

    /// Parses a header whose token has verified; in a daemon only request_verifier calls it. It is
    /// strict: every field must be in its range, no byte may be left over, and text that becomes an
    /// argv, an environment or a command line must not hold a NUL. Fails with errc::bad_envelope
    /// (or incomplete, bad_version, bad_command_id, command_empty, command_too_large, unsupported)
    /// at the offset of the field.
    [[nodiscard]] static result<envelope> decode(bytes_view header) {
        if (header.size() > limits::request_header)
            return fail(errc::frame_too_large, limits::request_header);
        byte_reader r(header);
        envelope out;
        for (const auto read : {&envelope::read_fixed, &envelope::read_id,
                                &envelope::read_environment, &envelope::read_arguments})
            if (auto done = (out.*read)(r); !done)
                return tl::unexpected(done.error());
        const std::size_t body_at = r.offset();
        if (auto done = out.read_body(r); !done)
            return tl::unexpected(done.error());
        if (r.left() != 0)
            return fail(errc::bad_envelope, r.offset());
        if (auto shape = out.check_shape(body_at); !shape)
            return tl::unexpected(shape.error());
        if (!out.body_follows)
            if (auto content = check_content(out.kind, out.body); !content)
                return fail(content.error().code, body_at + 5 + content.error().offset);
        return out;
    }

    /// Checks that a body of this kind may hold these bytes. A command line must not hold a NUL,
    /// because bash would stop there while the record shows the rest too: errc::binary_content at
    /// the NUL. A script may hold any byte.
    [[nodiscard]] static result<std::monostate> check_content(request_kind kind,
                                                              std::string_view body) {
        if (kind == request_kind::shell)
            if (const auto at = body.find('\0'); at != body.npos)
                return fail(errc::binary_content, at);
        return std::monostate{};
    }

    /// Checks that a text can be an entry of the queue: not empty, at most limits::command bytes,
    /// and without control characters other than tab, newline and carriage return. Fails with
    /// errc::command_empty, command_too_large or binary_content.
    [[nodiscard]] static result<std::monostate> check_entry(std::string_view untrusted_text) {
        if (untrusted_text.empty())
            return fail(errc::command_empty);
        if (untrusted_text.size() > limits::command)
            return fail(errc::command_too_large, limits::command);
        const auto at = std::find_if(untrusted_text.begin(), untrusted_text.end(), [](char c) {
            return static_cast<unsigned char>(c) < 0x20 && c != '\t' && c != '\n' && c != '\r';
        });
        if (at != untrusted_text.end())
            return fail(errc::binary_content,
                        static_cast<std::size_t>(at - untrusted_text.begin()));
        return std::monostate{};
    }

    /// Offsets of fields in the header: of the features, and of the size of the terminal.
    static constexpr std::size_t features_at = 24, size_at = 28;

  private:
    // Counts a NUL after each word.
    [[nodiscard]] static std::size_t packed_size(std::span<const std::string> words) {
        std::size_t out = words.size();
        for (const std::string &word : words)
            out += word.size();
        return out;
    }
    [[nodiscard]] bool fits_header() const {
        constexpr std::size_t fixed = 2 + 16 + 1 + 1 + 4 + 4 + 2 + 2 + 1 + 2 + 2 + 1 + 4;
        std::size_t size = fixed + (id ? id->text().size() : 0);
        for (const auto &[key, value] : environment)
            size += 4 + key.size() + value.size();
        for (const std::string &argument : arguments)
            size += 2 + argument.size();
        size += body_follows ? body_digest.size() : body.size();
        return arguments.size() <= limits::arguments && size <= limits::request_header;
    }
    [[nodiscard]] static bool put_string(byte_writer &w, std::string_view text) {
        if (text.size() > 0xffff)
            return false;
        w.u16(static_cast<std::uint16_t>(text.size()));
        w.put(text);
        return true;
    }
    [[nodiscard]] static result<std::string> take_string(byte_reader &r) {
        const auto length = r.u16();
        if (!length)
            return tl::unexpected(length.error());
        const std::size_t at = r.offset();
        const auto text = r.take(*length);
        if (!text)
            return tl::unexpected(text.error());
        if (const auto nul = as_text(*text).find('\0'); nul != std::string_view::npos)
            return fail(errc::bad_envelope, at + nul);
        return std::string(as_text(*text));
    }
    [[nodiscard]] static bool is_variable_name(std::string_view text) {
        if (text.empty() || is_digit(text[0]))
            return false;
        return std::all_of(text.begin(), text.end(),
                           [](char c) { return is_alnum(c) || c == '_'; });
    }

    // The parts of a header, in their order.
    [[nodiscard]] result<std::monostate> read_fixed(byte_reader &r) {
        const auto version = r.u16();
        if (!version)
            return tl::unexpected(version.error());
        if (*version != protocol_version)
            return fail(errc::bad_version);
        const auto random = r.array<16>();
        const auto what = r.u8();
        const auto flags = r.u8();
        const auto seconds = r.u32();
        const auto extensions = r.u32();
        const auto width = r.u16();
        const auto height = r.u16();
        if (!height)
            return tl::unexpected(height.error());
        nonce = *random;
        kind = static_cast<request_kind>(*what);
        if (name(kind) == "unknown")
            return fail(errc::unsupported, 18);
        if (*flags & ~0x0f)
            return fail(errc::unsupported, 19);
        stdin_live = *flags & 1;
        tty = *flags & 2;
        detach = *flags & 4;
        dry_run = *flags & 8;
        timeout_s = *seconds;
        features = *extensions;
        if (features & ~feature::known)
            return fail(errc::unsupported, features_at);
        columns = *width;
        rows = *height;
        return std::monostate{};
    }
    [[nodiscard]] result<std::monostate> read_id(byte_reader &r) {
        const auto id_length = r.u8();
        if (!id_length)
            return tl::unexpected(id_length.error());
        const std::size_t id_at = r.offset();
        const auto id_bytes = r.take(*id_length);
        if (!id_bytes)
            return tl::unexpected(id_bytes.error());
        auto parsed = command_id::parse(as_text(*id_bytes));
        if (!parsed)
            return fail(parsed.error().code, id_at + parsed.error().offset);
        id = std::move(*parsed);
        return std::monostate{};
    }
    [[nodiscard]] result<std::monostate> read_environment(byte_reader &r) {
        const std::size_t variables_at = r.offset();
        const auto variables = r.u16();
        if (!variables)
            return tl::unexpected(variables.error());
        if (*variables > limits::environment)
            return fail(errc::bad_envelope, variables_at);
        for (std::uint16_t i = 0; i < *variables; ++i) {
            const std::size_t at = r.offset();
            auto key = take_string(r);
            if (!key)
                return tl::unexpected(key.error());
            auto value = take_string(r);
            if (!value)
                return tl::unexpected(value.error());
            // With the same name twice, the record could show one value and the command get the other.
            if (!is_variable_name(*key) ||
                std::any_of(environment.begin(), environment.end(),
                            [&](const auto &seen) { return seen.first == *key; }))
                return fail(errc::bad_envelope, at);
            environment.emplace_back(std::move(*key), std::move(*value));
        }
        return std::monostate{};
    }
    [[nodiscard]] result<std::monostate> read_arguments(byte_reader &r) {
        const std::size_t arguments_at = r.offset();
        const auto count = r.u16();
        if (!count)
            return tl::unexpected(count.error());
        if (*count > limits::arguments)
            return fail(errc::bad_envelope, arguments_at);
        for (std::uint16_t i = 0; i < *count; ++i) {
            auto argument = take_string(r);
            if (!argument)
                return tl::unexpected(argument.error());
            arguments.push_back(std::move(*argument));
        }
        return std::monostate{};
    }
    [[nodiscard]] result<std::monostate> read_body(byte_reader &r) {
        const std::size_t body_at = r.offset();
        const auto follows = r.u8();
        const auto length = r.u32();
        if (!length)
            return tl::unexpected(length.error());
        if (*follows > 1)
            return fail(errc::bad_envelope, body_at);
        if (*length > limits::command)
            return fail(errc::command_too_large, body_at + 1);
        body_follows = *follows == 1;
        body_length = *length;
        if (body_follows) {
            auto digest = r.array<32>();
            if (!digest)
                return tl::unexpected(digest.error());
            body_digest = *digest;
        } else {
            auto text = r.take(*length);
            if (!text)
                return tl::unexpected(text.error());
            body.assign(as_text(*text));
        }
        return std::monostate{};
    }

    // Checks that the request has only the fields of its kind, so that no signed field is silently
    // ignored.
    [[nodiscard]] result<std::monostate> check_shape(std::size_t at) const {
        // dom0 says whether it has jobs, so a request for one cannot reach a dom0 that has none.
        if ((detach || kind == request_kind::job) && !(features & feature::jobs))
            return fail(errc::unsupported, features_at);
        if (has_packed_arguments()) {
            const bool may = kind == request_kind::exec || kind == request_kind::script;
            if (!may || !arguments.empty() || !body_follows || body_length == 0)
                return fail(errc::bad_envelope, at);
            return std::monostate{};
        }
        switch (kind) {
        case request_kind::shell:
            if (body_length == 0)
                return fail(errc::command_empty, at);
            if (!arguments.empty())
                return fail(errc::bad_envelope, at);
            break;
        case request_kind::script:
            if (body_length == 0)
                return fail(errc::command_empty, at);
            break;
        case request_kind::exec:
            if (arguments.empty() || arguments[0].empty())
                return fail(errc::command_empty, at);
            if (body_length != 0 || body_follows)
                return fail(errc::bad_envelope, at);
            break;
        case request_kind::ping:
        case request_kind::status:
            if (!arguments.empty() || body_length != 0 || body_follows || stdin_live || tty ||
                detach)
                return fail(errc::bad_envelope, at);
            break;
        case request_kind::job: {
            const auto about = job_request::parse(arguments);
            if (!about || body_length != 0 || body_follows || tty || detach || dry_run ||
                (stdin_live && about->what != job_request::verb::attach))
                return fail(errc::bad_envelope, at);
            break;
        }
        }
        // dom0 says whether it has terminals, so a request for one cannot reach a dom0 that has none.
        if (tty != ((features & feature::terminal) != 0))
            return fail(errc::unsupported, features_at);
        if (!tty && (columns != 0 || rows != 0))
            return fail(errc::bad_envelope, size_at);
        return std::monostate{};
    }
};

} // namespace qvmremote
