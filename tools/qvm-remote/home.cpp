// SPDX-License-Identifier: GPL-2.0-or-later
#include "home.hpp"

#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include <qvmremote/host/files.hpp>

#include "common/begin.hpp"
#include "common/key_text.hpp"

namespace qvmremote::qube {

namespace {

constexpr std::size_t largest_key_file = 256;

std::string user_name() {
    const passwd *const who = ::getpwuid(::geteuid());
    return who && who->pw_name ? who->pw_name : std::to_string(::geteuid());
}

} // namespace

host::outcome<home> home::find() {
    auto found = find_home();
    if (!found)
        return tl::unexpected(found.error());
    home out;
    out.directory_ = std::move(*found);
    return out;
}

host::outcome<secret> home::load_key() const {
    const std::string path = key_file();
    const host::unique_fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (!fd && errno == ENOENT) {
        if (::access("/etc/qubes-release", F_OK) == 0)
            return host::failed(
                "this is dom0: run the command without qvm-remote, which is for qubes");
        return tl::unexpected(
            host::failure{"there is no key for " + user_name() + " at " + path +
                              "; make one with `qvm-remote key gen` and register it in dom0 with "
                              "`qvm-remote-dom0 authorize`",
                          ENOENT});
    }
    if (!fd && errno == ELOOP)
        return host::failed("the key file " + path +
                            " is a symbolic link: replace it by a file with the key");
    if (!fd)
        return host::failed("cannot read the key of " + user_name() + " at " + path, errno);
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode))
        return host::failed("the key " + path +
                            " is not a regular file: remove it, then `qvm-remote key gen`");
    if (st.st_uid != ::geteuid() && st.st_uid != 0)
        return host::failed("the key " + path + " belongs to another user: chown " + user_name() +
                            " " + path);
    if ((st.st_mode & 077) != 0)
        return host::failed("the key " + path + " can be read by others: chmod 600 " + path);
    std::array<char, largest_key_file + 1> text{};
    const ssize_t n = ::read(fd.get(), text.data(), text.size());
    if (n < 0)
        return host::failed("cannot read " + path, errno);
    auto key = read_key(std::string(text.data(), static_cast<std::size_t>(n)));
    OPENSSL_cleanse(text.data(), text.size());
    if (!key)
        return host::failed(
            path + ": " + key.error().what +
            ": remove the file, then `qvm-remote key import` or `qvm-remote key gen`");
    return key;
}

fault home::fault_of_key(const host::failure &why) noexcept {
    return why.error_number == ENOENT ? fault::key_missing : fault::key_unusable;
}

host::outcome<void> home::store_key(const secret &key) const {
    if (auto made = host::make_directories(directory_, 0700); !made)
        return made;
    std::string text(as_text(key.text()));
    text.push_back('\n');
    auto written = host::write_atomically(key_file(), text, 0600, host::durability::synced);
    OPENSSL_cleanse(text.data(), text.size());
    if (written && ::unlink(pin_file().c_str()) != 0 && errno != ENOENT)
        return host::failed("cannot remove " + pin_file(), errno);
    return written;
}

bool home::is_pinned() const { return ::access(pin_file().c_str(), F_OK) == 0 || errno != ENOENT; }

host::outcome<void> home::pin() const {
    if (::access(pin_file().c_str(), F_OK) == 0)
        return {};
    return host::write_atomically(pin_file(), {}, 0600, host::durability::synced);
}

} // namespace qvmremote::qube
