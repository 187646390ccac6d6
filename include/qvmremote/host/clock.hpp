// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The clocks: one that only counts, and local time as the records write it.

#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include <time.h>

namespace qvmremote::host {

/// Milliseconds since boot, suspends included: what the session machines are given as `now_ms`.
[[nodiscard]] inline std::uint64_t boottime_ms() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_BOOTTIME, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1000 +
           static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

/// A moment of local time.
struct local_time {
    std::int64_t seconds = 0; ///< since 1970, UTC
    tm fields{};
    long nanoseconds = 0;

    [[nodiscard]] static local_time now() noexcept {
        timespec t{};
        ::clock_gettime(CLOCK_REALTIME, &t);
        local_time out;
        out.seconds = t.tv_sec;
        out.nanoseconds = t.tv_nsec;
        ::localtime_r(&t.tv_sec, &out.fields);
        return out;
    }

    /// "YYYY-MM-DDTHH:MM:SS", as every protocol-1 record has it.
    [[nodiscard]] std::string timestamp() const { return format("%Y-%m-%dT%H:%M:%S"); }

    /// "YYYY-MM-DDTHH:MM:SS.mmm+hh:mm" for the audit log.
    [[nodiscard]] std::string precise() const {
        char zone[16];
        const long minutes = fields.tm_gmtoff / 60;
        std::snprintf(zone, sizeof zone, ".%03ld%c%02ld:%02ld", nanoseconds / 1'000'000,
                      minutes < 0 ? '-' : '+', (minutes < 0 ? -minutes : minutes) / 60,
                      (minutes < 0 ? -minutes : minutes) % 60);
        return timestamp() + zone;
    }

    /// As strftime; the result is short.
    [[nodiscard]] std::string format(const char *pattern) const {
        char text[64];
        return std::string(text, ::strftime(text, sizeof text, pattern, &fields));
    }
};

} // namespace qvmremote::host
