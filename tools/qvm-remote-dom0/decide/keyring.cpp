// SPDX-License-Identifier: GPL-2.0-or-later
#include "decide/keyring.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include <qvmremote/config.hpp>
#include <qvmremote/host/files.hpp>

namespace qvmremote::dom0 {

namespace {

// The files of a qube.
constexpr const char *key_file = ".key";
constexpr const char *until_file = ".until";       // of the key: seconds since 1970
constexpr const char *previous_file = ".previous"; // a key, then a line as in until_file
constexpr const char *pin_file = ".protocol2";

constexpr std::size_t largest_file = 256; // 64 digits, and the blanks that an editor may add

std::optional<std::int64_t> parse_seconds(std::string_view text) {
    if (text.ends_with('\n'))
        text.remove_suffix(1);
    return qvmremote::parse_decimal<std::int64_t>(text);
}

// Reads the files of one qube. The path of the directory is checked once for all of them.
class qube_files {
  public:
    qube_files(const std::string &directory, const qube_name &qube)
        : directory_(host::trusted_directory::open(directory)), path_(directory + "/"),
          qube_(qube) {}

    [[nodiscard]] host::outcome<std::string> read(const char *suffix, host::trusted kind) const {
        if (!directory_)
            return tl::unexpected(directory_.error());
        return directory_->read(qube_.text() + suffix, kind, largest_file);
    }

    [[nodiscard]] host::outcome<secret> key() const {
        auto text = read(key_file, host::trusted::secret);
        if (!text)
            return tl::unexpected(text.error());
        auto key = secret::parse(*text);
        OPENSSL_cleanse(text->data(), text->size());
        if (!key)
            return host::failed(path_ + qube_.text() + key_file + ": " +
                                std::string(message(key.error().code)) +
                                "; register it anew: qvm-remote-dom0 authorize " + qube_.text());
        return std::move(*key);
    }

    [[nodiscard]] std::optional<std::int64_t> until() const {
        const auto text = read(until_file, host::trusted::file);
        if (!text)
            return text.error().error_number == ENOENT ? std::nullopt
                                                       : std::optional<std::int64_t>(0);
        return parse_seconds(*text).value_or(0);
    }

    struct rotated_out {
        std::string key;
        std::int64_t until = 0;
    };
    [[nodiscard]] std::optional<rotated_out> previous() const {
        auto text = read(previous_file, host::trusted::secret);
        const std::size_t end = text ? text->find('\n') : std::string::npos;
        if (end == std::string::npos)
            return std::nullopt;
        rotated_out out{text->substr(0, end),
                        parse_seconds(std::string_view(*text).substr(end + 1)).value_or(0)};
        OPENSSL_cleanse(text->data(), text->size());
        return out;
    }

  private:
    host::outcome<host::trusted_directory> directory_;
    std::string path_;
    const qube_name &qube_;
};

} // namespace

host::outcome<secret> keyring::load(const qube_name &qube) const {
    return qube_files(directory_, qube).key();
}

std::optional<std::int64_t> keyring::until(const qube_name &qube) const {
    return qube_files(directory_, qube).until();
}

std::optional<std::int64_t> keyring::previous_until(const qube_name &qube) const {
    auto old = qube_files(directory_, qube).previous();
    if (!old)
        return std::nullopt;
    OPENSSL_cleanse(old->key.data(), old->key.size());
    return old->until;
}

host::outcome<known_keys> keyring::known(const qube_name &qube, std::int64_t now) const {
    const qube_files files(directory_, qube);
    auto key = files.key();
    if (!key)
        return tl::unexpected(key.error());
    known_keys out;
    out.keys.push_back(std::move(*key));
    if (const auto ends = files.until(); ends && *ends <= now)
        out.ended_at = *ends;
    else
        out.usable = 1;
    // A previous key that does not parse is left out: it lets nobody in.
    if (auto old = files.previous()) {
        if (auto parsed = secret::parse(old->key)) {
            out.keys.push_back(std::move(*parsed));
            if (out.usable == 1 && now < old->until)
                out.usable = 2;
            else if (out.usable == 1)
                out.ended_at = old->until;
        }
        OPENSSL_cleanse(old->key.data(), old->key.size());
    }
    return out;
}

host::outcome<std::vector<secret>> keyring::usable(const qube_name &qube, std::int64_t now) const {
    auto all = known(qube, now);
    if (!all)
        return tl::unexpected(all.error());
    if (all->usable == 0)
        return host::failed("the key of '" + qube.text() +
                                "' has expired; register it anew: qvm-remote-dom0 authorize " +
                                qube.text(),
                            EKEYEXPIRED);
    all->keys.erase(all->keys.begin() + static_cast<std::ptrdiff_t>(all->usable), all->keys.end());
    return std::move(all->keys);
}

host::outcome<void> keyring::write(const qube_name &qube, const char *suffix,
                                   std::string text) const {
    if (auto made = host::make_directories(directory_, 0700); !made)
        return made;
    if (auto safe = host::open_trusted(directory_, host::trusted::directory); !safe)
        return tl::unexpected(safe.error());
    auto written = host::write_atomically(path(qube, suffix), text, 0600, host::durability::synced);
    OPENSSL_cleanse(text.data(), text.size());
    return written;
}

host::outcome<void> keyring::store(const qube_name &qube, const secret &key,
                                   std::optional<std::int64_t> until) const {
    // An earlier time is written before the key, a later one after it. So at no moment, and after no
    // failure, does the old or the new key last longer than was meant.
    const auto old = this->until(qube);
    const bool is_earlier = until && (!old || *until <= *old);
    const auto write_until = [&] { return write(qube, until_file, std::to_string(*until) + "\n"); };
    ::unlink(path(qube, previous_file).c_str());
    if (is_earlier)
        if (auto written = write_until(); !written)
            return written;
    if (auto written = write(qube, key_file, std::string(as_text(key.text())) + "\n"); !written)
        return written;
    if (until && !is_earlier)
        if (auto written = write_until(); !written)
            return written;
    if (!until && ::unlink(path(qube, until_file).c_str()) != 0 && errno != ENOENT)
        return host::failed("cannot remove " + path(qube, until_file), errno);
    return {};
}

host::outcome<void> keyring::rotate(const qube_name &qube, const secret &key,
                                    std::int64_t now) const {
    const auto present = load(qube);
    if (!present)
        return tl::unexpected(present.error());
    if (present->fingerprint() == key.fingerprint())
        return host::failed("'" + qube.text() + "' has this key already", EEXIST);
    if (auto written = write(qube, previous_file,
                             std::string(as_text(present->text())) + "\n" +
                                 std::to_string(now + overlap_s) + "\n");
        !written)
        return written;
    return write(qube, key_file, std::string(as_text(key.text())) + "\n");
}

bool keyring::is_pinned(const qube_name &qube, const digest256 &mark) const {
    const auto text = host::read_trusted(path(qube, pin_file), host::trusted::file, largest_file);
    if (!text)
        return text.error().error_number != ENOENT;
    return text->find(to_hex(mark)) != std::string::npos;
}

host::outcome<void> keyring::pin(const qube_name &qube, const digest256 &mark) const {
    std::string text = to_hex(mark) + "\n";
    // The last two marks, since two keys are usable after a rotation.
    if (const auto old =
            host::read_trusted(path(qube, pin_file), host::trusted::file, largest_file))
        text += old->substr(0, text.size());
    return host::write_atomically(path(qube, pin_file), text, 0600, host::durability::synced);
}

host::outcome<void> keyring::remove(const qube_name &qube) const {
    auto directory = host::open_trusted(directory_, host::trusted::directory);
    if (!directory)
        return tl::unexpected(directory.error());
    // The previous key first: it does not count without the present one.
    ::unlinkat(directory->get(), (qube.text() + previous_file).c_str(), 0);
    if (::unlinkat(directory->get(), (qube.text() + key_file).c_str(), 0) != 0)
        return host::failed("cannot remove the key of '" + qube.text() + "'", errno);
    for (const char *suffix : {until_file, pin_file})
        ::unlinkat(directory->get(), (qube.text() + suffix).c_str(), 0);
    if (::fsync(directory->get()) != 0)
        return host::failed("the key of '" + qube.text() +
                                "' is removed, but a crash now may bring it back: try again",
                            errno);
    return {};
}

host::outcome<std::vector<qube_name>> keyring::list() const {
    auto directory = host::open_trusted(directory_, host::trusted::directory);
    if (!directory) {
        if (directory.error().error_number == ENOENT)
            return std::vector<qube_name>{};
        return tl::unexpected(directory.error());
    }
    const auto names = host::names_in(directory->get());
    if (!names)
        return host::failed("cannot read " + directory_, names.error().error_number);
    std::vector<qube_name> out;
    for (std::string_view name : *names) {
        if (!name.ends_with(key_file))
            continue;
        name.remove_suffix(std::strlen(key_file));
        if (auto qube = qube_name::parse(name))
            out.push_back(std::move(*qube));
    }
    std::sort(out.begin(), out.end());
    return out;
}

} // namespace qvmremote::dom0
