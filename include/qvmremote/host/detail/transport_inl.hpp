// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Bodies of host/transport.hpp. They check every answer of a plug-in.

#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include <fcntl.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/transport.hpp>
#include <qvmremote/sanitize.hpp>

namespace qvmremote::host {
namespace detail {

// Whether a name has the form [a-z][a-z0-9-]{0,31}. It becomes part of a path, so check it first.
[[nodiscard]] constexpr bool is_transport_name(std::string_view name) noexcept {
    return !name.empty() && name.size() <= 32 && name[0] >= 'a' && name[0] <= 'z' &&
           std::all_of(name.begin(), name.end(),
                       [](char c) { return (c >= 'a' && c <= 'z') || is_digit(c) || c == '-'; });
}

// Allows more than the name of a local qube (31 characters, no dot), so that the name of a remote
// qube can fit later.
[[nodiscard]] constexpr bool is_peer_name(std::string_view name) noexcept {
    return !name.empty() && name.size() < sizeof(qvmremote_stream::peer) && is_alpha(name[0]) &&
           std::all_of(name.begin(), name.end(),
                       [](char c) { return is_alnum(c) || c == '_' || c == '-' || c == '.'; });
}

// Whether a text has the form that qrexec allows for the argument of a service.
[[nodiscard]] constexpr bool is_argument(std::string_view text) noexcept {
    return text.size() < sizeof(qvmremote_stream::argument) &&
           std::all_of(text.begin(), text.end(), [](char c) {
               return is_alnum(c) || c == '_' || c == '.' || c == '+' || c == '-';
           });
}

// The text that a plug-in wrote into a buffer of ours, up to the first NUL or to the end of the
// buffer.
template <std::size_t N>
[[nodiscard]] std::string_view bounded(const char (&text)[N]) noexcept {
    const void *nul = std::memchr(text, '\0', N);
    return {text,
            nul == nullptr ? N : static_cast<std::size_t>(static_cast<const char *>(nul) - text)};
}

// Copies the first `struct_size` bytes of the plug-in's table. After the two numbers at the
// beginning, every field is a pointer or a pair of numbers of the same size, so whole pointers are
// copied and a field that is cut counts as absent.
[[nodiscard]] inline qvmremote_transport_ops
copy_table(const qvmremote_transport_ops *table) noexcept {
    qvmremote_transport_ops out{};
    const std::size_t present =
        std::min<std::size_t>(table->struct_size, sizeof out) / sizeof(void *) * sizeof(void *);
    std::memcpy(&out, table, present);
    return out;
}

struct status_row {
    std::int32_t status;
    const char *name;
    int error_number;
};
inline constexpr status_row statuses[] = {
    {QVMREMOTE_AGAIN, "QVMREMOTE_AGAIN", EPROTO},
    {QVMREMOTE_FAILED, "QVMREMOTE_FAILED", EIO},
    {QVMREMOTE_BAD_OPTION, "QVMREMOTE_BAD_OPTION", EINVAL},
    {QVMREMOTE_UNREACHABLE, "QVMREMOTE_UNREACHABLE", ECONNREFUSED},
    {QVMREMOTE_REFUSED, "QVMREMOTE_REFUSED", EACCES},
};

inline constexpr std::uint32_t error_text_size = 512;

} // namespace detail

inline std::optional<std::string> option_name(std::string_view name,
                                              std::string_view configuration_key) {
    std::string prefix = "QVM_REMOTE_";
    for (const char c : name)
        prefix += c == '-' ? '_' : c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    prefix += '_';
    if (configuration_key.size() <= prefix.size() || !configuration_key.starts_with(prefix))
        return std::nullopt;
    std::string out(configuration_key.substr(prefix.size()));
    for (char &c : out)
        c = c == '_' ? '-' : c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return out;
}

inline tl::unexpected<failure> transport::plugin_failed(const char *function, std::int32_t status,
                                                        const char *text) const {
    const auto row = std::find_if(std::begin(detail::statuses), std::end(detail::statuses),
                                  [&](const detail::status_row &r) { return r.status == status; });
    const bool known = row != std::end(detail::statuses);
    std::string what = "transport '" + name_ + "': ";
    if (*text != '\0')
        what += for_terminal(text);
    else
        what += std::string(function) + " failed without a reason (" +
                (known ? row->name : "status " + std::to_string(status)) +
                "); ask who made this transport";
    return tl::unexpected(failure{std::move(what), known ? row->error_number : EPROTO});
}

inline tl::unexpected<failure> transport::contract_broken(const char *how) const {
    return tl::unexpected(failure{"transport '" + name_ + "' broke its contract: " + how +
                                      "; reinstall it or ask its author",
                                  EPROTO});
}

inline outcome<transport> transport::from_table(const qvmremote_transport_ops *table,
                                                std::shared_ptr<const void> library,
                                                std::string_view configured_name, role as,
                                                const transport_options &options) {
    transport out;
    out.library_ = std::move(library);
    out.name_ = configured_name;
    // Every version of the table begins with the same two numbers. Check the ABI before anything
    // else.
    if (table->abi != QVMREMOTE_TRANSPORT_ABI)
        return failed("transport '" + out.name_ + "' has ABI " + std::to_string(table->abi) +
                      " and this program takes " + std::to_string(QVMREMOTE_TRANSPORT_ABI) +
                      "; install the transport that was built for this version");
    out.ops_ = detail::copy_table(table);
    const qvmremote_transport_ops &ops = out.ops_;
    if (ops.name == nullptr ||
        !detail::is_transport_name(std::string_view(ops.name, ::strnlen(ops.name, 33))))
        return out.contract_broken("its table has no name of the form [a-z][a-z0-9-]{0,31}");
    if (!configured_name.empty() && configured_name != ops.name)
        return failed("transport '" + out.name_ + "' calls itself '" + ops.name +
                      "'; give the file its own name back");
    out.name_ = ops.name;
    out.role_ = as;

    const bool is_dom0 = as == role::dom0;
    if ((ops.roles & static_cast<std::uint32_t>(as)) == 0)
        return failed("transport '" + out.name_ + "' has no part for " +
                      (is_dom0 ? "dom0" : "a qube") + "; set QVM_REMOTE_TRANSPORT to one that has");
    const struct {
        const char *name;
        bool missing;
    } required[] = {
        {"open", ops.open == nullptr},
        {"close", ops.close == nullptr},
        {"connect", !is_dom0 && ops.connect == nullptr},
        {"listen", is_dom0 && ops.listen == nullptr},
        {"accept", is_dom0 && ops.accept == nullptr},
    };
    for (const auto &function : required)
        if (function.missing)
            return failed("transport '" + out.name_ + "' lacks the function '" + function.name +
                          "'; install one that was built for this version");

    std::vector<qvmremote_option> items;
    items.reserve(options.size());
    for (const auto &[key, value] : options)
        items.push_back({key.c_str(), value.c_str()});
    const qvmremote_options borrowed{sizeof borrowed, static_cast<std::uint32_t>(items.size()),
                                     items.data()};
    char text[detail::error_text_size] = {};
    void *self = nullptr;
    const std::int32_t status =
        ops.open(&borrowed, static_cast<std::uint32_t>(as), &self, text, sizeof text - 1);
    if (status != QVMREMOTE_OK)
        return out.plugin_failed("open", status, text);
    if (self == nullptr)
        return out.contract_broken("open gave nothing");
    out.self_ = self;
    return out;
}

inline outcome<stream> transport::take(const qvmremote_stream &given, std::string peer) const {
    stream out{unique_fd(given.in_fd), unique_fd(), std::move(peer)};
    const bool is_one = given.in_fd == given.out_fd;
    if (!is_one)
        out.out.reset(given.out_fd);
    if (!out.in || (!is_one && !out.out))
        return contract_broken("it gave a stream without descriptors");
    if (is_one) {
        out.out.reset(::fcntl(given.in_fd, F_DUPFD_CLOEXEC, 0));
        if (!out.out)
            return failed("transport '" + name_ + "': cannot duplicate a descriptor", errno);
    }
    // A command that inherits a descriptor would keep the stream open after we close it.
    for (const int fd : {out.in.get(), out.out.get()}) {
        const int flags = ::fcntl(fd, F_GETFD);
        if (flags < 0)
            return contract_broken("it gave a descriptor that is not open");
        if ((flags & FD_CLOEXEC) == 0)
            return contract_broken("it gave a descriptor that is not close-on-exec");
    }
    return out;
}

inline outcome<stream> transport::connect() {
    if (role_ != role::qube)
        return failed("transport '" + name_ + "' was opened for dom0, so it does not connect");
    qvmremote_stream given{sizeof given, -1, -1, {}, {}};
    char text[detail::error_text_size] = {};
    const std::int32_t status = ops_.connect(self_, &given, text, sizeof text - 1);
    if (status != QVMREMOTE_OK)
        return plugin_failed("connect", status, text);
    return take(given, "dom0");
}

inline std::optional<failure> transport::explain() {
    if (role_ != role::qube || ops_.explain == nullptr)
        return std::nullopt;
    char text[detail::error_text_size] = {};
    const std::int32_t status = ops_.explain(self_, text, sizeof text - 1);
    if (status == QVMREMOTE_OK || status == QVMREMOTE_AGAIN)
        return std::nullopt;
    return plugin_failed("explain", status, text).value();
}

inline outcome<int> transport::listen() {
    if (role_ != role::dom0)
        return failed("transport '" + name_ + "' was opened for a qube, so it does not listen");
    std::int32_t event_fd = -1;
    char text[detail::error_text_size] = {};
    const std::int32_t status = ops_.listen(self_, &event_fd, text, sizeof text - 1);
    if (status != QVMREMOTE_OK)
        return plugin_failed("listen", status, text);
    if (event_fd < 0)
        return contract_broken("listen gave no descriptor");
    return event_fd;
}

inline outcome<std::optional<stream>> transport::accept() {
    if (role_ != role::dom0)
        return failed("transport '" + name_ + "' was opened for a qube, so it does not listen");
    qvmremote_stream given{sizeof given, -1, -1, {}, {}};
    char text[detail::error_text_size] = {};
    const std::int32_t status = ops_.accept(self_, &given, text, sizeof text - 1);
    if (status == QVMREMOTE_AGAIN)
        return std::nullopt;
    if (status != QVMREMOTE_OK)
        return plugin_failed("accept", status, text);
    // The host owns the descriptors now, so take them before a wrong name can end this function.
    const std::string_view untrusted_peer = detail::bounded(given.peer);
    auto taken = take(given, std::string(untrusted_peer));
    if (!taken)
        return tl::unexpected(taken.error());
    if (!detail::is_peer_name(untrusted_peer))
        return contract_broken("it gave a peer's name that is not a letter, then letters, digits, "
                               "'_', '-', '.', 63 at most");
    const std::string_view untrusted_argument = detail::bounded(given.argument);
    if (!detail::is_argument(untrusted_argument))
        return contract_broken("it gave an argument that is not of letters, digits, '_', '-', '.', "
                               "'+', 63 at most");
    taken->argument = untrusted_argument;
    return std::optional<stream>(std::move(*taken));
}

inline outcome<void> transport::set_peers(std::span<const std::string> names) {
    if (role_ != role::dom0)
        return failed("transport '" + name_ + "' was opened for a qube, so it has no peers");
    if (!takes_peers())
        return {};
    std::vector<const char *> pointers;
    pointers.reserve(names.size());
    for (const std::string &name : names)
        pointers.push_back(name.c_str());
    char text[detail::error_text_size] = {};
    const std::int32_t status = ops_.set_peers(
        self_, pointers.data(), static_cast<std::uint32_t>(pointers.size()), text, sizeof text - 1);
    if (status != QVMREMOTE_OK)
        return plugin_failed("set_peers", status, text);
    return {};
}

} // namespace qvmremote::host
