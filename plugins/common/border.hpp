// SPDX-License-Identifier: GPL-2.0-or-later
/// @file
/// Turns exceptions into status codes: guarded() wraps every function in a plug-in's table.

#pragma once

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include <qvmremote/transport_abi.h>

namespace plugins {

/// An exception with a status and a message.
struct problem {
    std::int32_t status;
    std::string text;
};

/// Turns an exception of `body` into a status and a line of text. One of an unknown type leaves
/// `error` as it is.
template <class Body>
std::int32_t guarded(char *error, std::uint32_t error_size, Body body) noexcept {
    const auto say = [&](const char *text) {
        if (error != nullptr && error_size != 0)
            std::snprintf(error, error_size, "%s", text);
    };
    try {
        return body();
    } catch (const problem &why) {
        say(why.text.c_str());
        return why.status;
    } catch (const std::exception &why) {
        say(why.what());
        return QVMREMOTE_FAILED;
    } catch (...) {
        return QVMREMOTE_FAILED;
    }
}

} // namespace plugins
