// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// The clocks: two that only count, and local time in the forms of the records.

#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

#include <time.h>

namespace qvmremote::host {

/// Milliseconds since boot, with the time in suspend: the `now_ms` of the session machines.
[[nodiscard]] inline std::uint64_t boottime_ms() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_BOOTTIME, &t);
    return static_cast<std::uint64_t>(t.tv_sec) * 1000 +
           static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

/// The same without the time in suspend (CLOCK_MONOTONIC): for limits on how long the other end may
/// take, since it cannot answer while the machine is suspended.
[[nodiscard]] inline std::uint64_t awake_ms() noexcept {
    timespec t{};
    ::clock_gettime(CLOCK_MONOTONIC, &t);
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

    /// "YYYY-MM-DD", the name of a day's directory.
    [[nodiscard]] std::string date() const {
        char text[48];
        std::snprintf(text, sizeof text, "%04d-%02d-%02d", fields.tm_year + 1900, fields.tm_mon + 1,
                      fields.tm_mday);
        return text;
    }
    /// "YYYYmmdd-HHMMSS", as an ID begins.
    [[nodiscard]] std::string compact() const {
        char text[48];
        std::snprintf(text, sizeof text, "%04d%02d%02d-%02d%02d%02d", fields.tm_year + 1900,
                      fields.tm_mon + 1, fields.tm_mday, fields.tm_hour, fields.tm_min,
                      fields.tm_sec);
        return text;
    }
    /// "YYYY-MM-DDTHH:MM:SS", as every protocol-1 record has it.
    [[nodiscard]] std::string timestamp() const {
        char text[48];
        std::snprintf(text, sizeof text, "T%02d:%02d:%02d", fields.tm_hour, fields.tm_min,
                      fields.tm_sec);
        return date() + text;
    }

    /// "YYYY-MM-DDTHH:MM:SS.mmm+hh:mm" for the audit log.
    [[nodiscard]] std::string precise() const {
        char zone[64];
        const long minutes = fields.tm_gmtoff / 60;
        std::snprintf(zone, sizeof zone, ".%03ld%c%02ld:%02ld", nanoseconds / 1'000'000,
                      minutes < 0 ? '-' : '+', (minutes < 0 ? -minutes : minutes) / 60,
                      (minutes < 0 ? -minutes : minutes) % 60);
        return timestamp() + zone;
    }
};

} // namespace qvmremote::host
