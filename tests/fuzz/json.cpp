// SPDX-License-Identifier: GPL-2.0-or-later
// Checks with another reader of JSON that what json_writer writes can be read, gives back the same
// bytes, is valid UTF-8 and holds no control character. The first byte of the input says where the
// bytes are cut into pieces, as they may come from dom0.

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include <qvmremote/json.hpp>

#include "target.hpp"

using namespace qvmremote;

namespace {

// The bytes of base64 with padding; no other character occurs in it.
std::string from_base64(std::string_view text) {
    constexpr std::string_view alphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    require(text.size() % 4 == 0);
    std::string out;
    std::uint32_t bits = 0;
    int held = 0;
    for (const char c : text.substr(0, text.find('='))) {
        const std::size_t value = alphabet.find(c);
        require(value != alphabet.npos);
        bits = bits << 6 | static_cast<std::uint32_t>(value);
        if ((held += 6) >= 8)
            out.push_back(static_cast<char>(bits >> (held -= 8) & 0xff));
    }
    return out;
}

nlohmann::json read(std::string_view text) {
    require(std::none_of(text.begin(), text.end(),
                         [](char c) { return static_cast<std::uint8_t>(c) < 0x20 || c == 0x7f; }));
    auto value = nlohmann::json::parse(text, nullptr, false);
    require(!value.is_discarded());
    return value;
}

std::string content_of(const nlohmann::json &value) {
    require(value.contains("text") != value.contains("base64"));
    return value.contains("text") ? value.at("text").get<std::string>()
                                  : from_base64(value.at("base64").get<std::string>());
}

std::string written(std::string_view bytes) {
    std::string out;
    json_writer w(out);
    w.begin();
    w.content(bytes);
    w.text("shown", bytes);
    w.begin_array("list");
    w.text(bytes);
    w.end();
    w.end();
    return out;
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    if (size == 0)
        return 0;
    const std::string_view bytes(reinterpret_cast<const char *>(data) + 1, size - 1);
    const auto whole = read(written(bytes));
    require(content_of(whole) == bytes);
    require(whole.contains("text") == is_utf8(bytes));
    require(whole.at("shown") == whole.at("list").at(0));
    if (whole.contains("text"))
        require(whole.at("shown") == whole.at("text"));

    // Text that comes in pieces stays text if each piece leaves its last half character to the next.
    const std::size_t piece = 1 + data[0] % 16;
    std::string held, together;
    for (std::size_t i = 0; i < bytes.size(); i += piece) {
        held += bytes.substr(i, piece);
        const std::size_t n = whole_characters(held);
        require(n <= held.size() && held.size() - n <= 3);
        const auto part = read(written(std::string_view(held).substr(0, n)));
        require(!whole.contains("text") || part.contains("text"));
        together += content_of(part);
        held.erase(0, n);
    }
    require(together + held == bytes);
    return 0;
}
