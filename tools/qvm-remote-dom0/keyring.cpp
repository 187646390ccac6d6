// SPDX-License-Identifier: GPL-2.0-or-later
#include "keyring.hpp"

#include <algorithm>
#include <cerrno>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include <qvmremote/host/files.hpp>

namespace qvmremote::dom0 {

namespace {
constexpr std::string_view suffix = ".key";
constexpr std::size_t largest_key_file = 256; // 64 digits, and whatever blanks an editor left
} // namespace

host::outcome<secret> keyring::load(const qube_name &qube) const {
    auto text = host::read_trusted(path(qube), host::trusted::secret, largest_key_file);
    if (!text)
        return tl::unexpected(text.error());
    auto key = secret::parse(*text);
    OPENSSL_cleanse(text->data(), text->size());
    if (!key)
        return host::failed(path(qube) + ": " + std::string(message(key.error().code)) +
                            "; register it anew: qvm-remote-dom0 authorize " + qube.text());
    return std::move(*key);
}

host::outcome<void> keyring::store(const qube_name &qube, const secret &key) const {
    if (auto made = host::make_directories(directory_, 0700); !made)
        return made;
    if (auto safe = host::open_trusted(directory_, host::trusted::directory); !safe)
        return tl::unexpected(safe.error());
    std::string text(as_text(key.text()));
    text.push_back('\n');
    auto written = host::write_atomically(path(qube), text, 0600, host::durability::synced);
    OPENSSL_cleanse(text.data(), text.size());
    return written;
}

bool keyring::is_pinned(const qube_name &qube, const digest256 &mark) const {
    const auto text = host::read_trusted(pin_path(qube), host::trusted::file, largest_key_file);
    if (!text)
        return text.error().error_number != ENOENT;
    return *text == to_hex(mark) + "\n";
}

host::outcome<void> keyring::pin(const qube_name &qube, const digest256 &mark) const {
    return host::write_atomically(pin_path(qube), to_hex(mark) + "\n", 0600,
                                  host::durability::synced);
}

host::outcome<void> keyring::remove(const qube_name &qube) const {
    auto directory = host::open_trusted(directory_, host::trusted::directory);
    if (!directory)
        return tl::unexpected(directory.error());
    const std::string file = qube.text() + std::string(suffix);
    if (::unlinkat(directory->get(), file.c_str(), 0) != 0)
        return host::failed("cannot remove the key of '" + qube.text() + "'", errno);
    ::unlinkat(directory->get(), (qube.text() + ".protocol2").c_str(), 0);
    if (::fsync(directory->get()) != 0)
        return host::failed("the key of '" + qube.text() + "' is removed, but not durably", errno);
    return {};
}

host::outcome<std::vector<qube_name>> keyring::list() const {
    auto directory = host::open_trusted(directory_, host::trusted::directory);
    if (!directory) {
        if (directory.error().error_number == ENOENT)
            return std::vector<qube_name>{};
        return tl::unexpected(directory.error());
    }
    DIR *const entries = ::fdopendir(directory->get());
    if (!entries)
        return host::failed("cannot read " + directory_, errno);
    (void)directory->release(); // closedir closes it
    std::vector<qube_name> out;
    while (const dirent *entry = ::readdir(entries)) {
        std::string_view name = entry->d_name;
        if (!name.ends_with(suffix))
            continue;
        name.remove_suffix(suffix.size());
        if (auto qube = qube_name::parse(name))
            out.push_back(std::move(*qube));
    }
    ::closedir(entries);
    std::sort(out.begin(), out.end());
    return out;
}

} // namespace qvmremote::dom0
