// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Parses what qubesd says about qubes: its events and its listing. It does not read a socket.
/// qubesd is part of dom0, but other qubes chose names in its answers, so they are untrusted.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <qvmremote/command_id.hpp>
#include <qvmremote/error.hpp>

namespace qvm_run {

using qvmremote::errc;
using qvmremote::fail;
using qvmremote::qube_name;
using qvmremote::result;

/// The calls as they are written to the socket: METHOD+ARGUMENT SOURCE "name" DESTINATION, a NUL,
/// no payload.
inline constexpr std::string_view ask_events{"admin.Events+ dom0 name dom0\0", 29};
inline constexpr std::string_view ask_listing{"admin.vm.List+ dom0 name dom0\0", 30};

inline constexpr std::size_t largest_event = 64 * 1024;
inline constexpr std::size_t largest_listing = 1024 * 1024;

enum class news : std::uint8_t {
    connected, ///< the first event: no later event is missed
    runs,      ///< started or unpaused
    stands,    ///< halted, paused or removed: do not call it
};

struct event {
    news what;
    std::string qube; ///< a qube's name; empty for `connected`

    friend bool operator==(const event &, const event &) = default;
};

/// Parses events from the bytes of one connection. It skips events that do not say whether a qube
/// runs, and events whose subject is not the name of a qube. After an error, it only returns that
/// error.
class event_reader {
  public:
    /// Takes bytes from the front of `untrusted` until an event is complete. Returns nothing when
    /// all bytes are taken before that.
    [[nodiscard]] result<std::optional<event>> next(std::string_view &untrusted) {
        while (!untrusted.empty()) {
            if (is_broken_ || ++size_ > largest_event)
                return broken();
            const char c = untrusted.front();
            untrusted.remove_prefix(1);
            if (c != '\0') {
                if (place_ == place::kind && (c != '1' || !field_.empty()))
                    return broken(); // '2' is an exception: qubesd refuses to send events
                is_empty_ = false;
                if (field_.size() <= longest_kept) // one byte over shows that it was longer
                    field_ += c;
                continue;
            }
            std::string text = std::exchange(field_, {});
            const bool was_empty = std::exchange(is_empty_, true);
            switch (place_) {
            case place::kind:
                if (was_empty)
                    return broken();
                place_ = place::subject;
                break;
            case place::subject:
                subject_ = std::move(text);
                place_ = place::name;
                break;
            case place::name:
                name_ = std::move(text);
                place_ = place::key;
                break;
            case place::key:
                if (was_empty) {
                    auto out = complete();
                    if (!out || *out)
                        return out;
                    break;
                }
                is_vm_ = text == "vm";
                place_ = place::value;
                break;
            case place::value:
                if (is_vm_)
                    vm_ = std::move(text);
                place_ = place::key;
                break;
            }
        }
        return std::nullopt;
    }

  private:
    enum class place : std::uint8_t { kind, subject, name, key, value };
    static constexpr std::size_t longest_kept = 64;

    [[nodiscard]] tl::unexpected<qvmremote::error> broken() {
        is_broken_ = true;
        return fail(errc::bad_value);
    }

    [[nodiscard]] result<std::optional<event>> complete() {
        const std::string name = std::exchange(name_, {});
        std::string subject = std::exchange(subject_, {});
        const std::string vm = std::exchange(vm_, {});
        place_ = place::kind;
        size_ = 0;
        if (!std::exchange(is_connected_, true)) {
            if (name != "connection-established" || !subject.empty())
                return broken();
            return event{news::connected, {}};
        }
        static constexpr std::pair<std::string_view, news> known[] = {
            {"domain-start", news::runs},    {"domain-unpaused", news::runs},
            {"domain-paused", news::stands}, {"domain-shutdown", news::stands},
            {"domain-delete", news::stands},
        };
        for (const auto &[text, kind] : known) {
            if (name != text)
                continue;
            // When a qube is deleted, the subject is the whole system, and `vm` names the qube.
            auto qube = qube_name::parse(subject.empty() ? vm : subject);
            if (qube)
                return event{kind, qube->text()};
        }
        return std::nullopt;
    }

    place place_ = place::kind;
    bool is_broken_ = false;
    bool is_connected_ = false;
    bool is_empty_ = true; // the current field, so far
    bool is_vm_ = false;   // the next value is that of `vm`
    std::size_t size_ = 0; // of the event
    std::string field_;
    std::string subject_;
    std::string name_;
    std::string vm_;
};

/// Returns the names of the qubes that run, sorted, from the whole answer to ask_listing. Each line
/// has a name and words KEY=VALUE; one KEY is `state`.
[[nodiscard]] inline result<std::vector<std::string>> running_qubes(std::string_view untrusted) {
    if (untrusted.size() > largest_listing)
        return fail(errc::bad_value, largest_listing);
    if (!untrusted.starts_with(std::string_view("0\0", 2)))
        return fail(errc::bad_value);
    std::vector<std::string> out;
    std::size_t at = 2;
    while (at < untrusted.size()) {
        const std::size_t end = untrusted.find('\n', at);
        if (end == std::string_view::npos)
            return fail(errc::incomplete, untrusted.size());
        std::string_view line = untrusted.substr(at, end - at);
        const std::string_view name = line.substr(0, line.find(' '));
        if (name.empty())
            return fail(errc::bad_value, at);
        line.remove_prefix(name.size());
        std::optional<std::string_view> state;
        while (!line.empty()) {
            line.remove_prefix(1); // the blank
            const std::string_view word = line.substr(0, line.find(' '));
            line.remove_prefix(word.size());
            const std::size_t equals = word.find('=');
            if (equals == 0 || equals == std::string_view::npos)
                return fail(errc::bad_value, at);
            if (word.substr(0, equals) != "state")
                continue;
            if (state)
                return fail(errc::bad_value, at);
            state = word.substr(equals + 1);
        }
        if (!state)
            return fail(errc::bad_value, at);
        auto qube = qube_name::parse(name);
        if (qube && *state == "Running")
            out.push_back(qube->text());
        at = end + 1;
    }
    std::sort(out.begin(), out.end());
    if (std::adjacent_find(out.begin(), out.end()) != out.end())
        return fail(errc::bad_value);
    return out;
}

} // namespace qvm_run
