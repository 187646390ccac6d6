// SPDX-License-Identifier: GPL-2.0-or-later
#include "execute/job_files.hpp"

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <qvmremote/bytes.hpp>
#include <qvmremote/host/files.hpp>
#include <qvmremote/limits.hpp>

namespace qvmremote::dom0 {

namespace {

using host::unique_fd;

constexpr std::string_view record_magic = "qvm-remote job 1";
constexpr std::string_view end_magic = "qvm-remote end 1";
constexpr std::size_t largest_end = 1024;
constexpr std::size_t largest_record = limits::command + 2 * limits::request_header;
constexpr std::size_t name_digits = 16;

void put_text(byte_writer &to, std::string_view text) {
    to.u32(static_cast<std::uint32_t>(text.size()));
    to.put(text);
}
[[nodiscard]] result<std::string> take_text(byte_reader &from) {
    const auto size = from.u32();
    const auto text = from.take(size.value_or(UINT32_MAX));
    if (!text)
        return tl::unexpected(text.error());
    return std::string(as_text(*text));
}

[[nodiscard]] bool is_name(std::string_view text) {
    return text.size() == name_digits &&
           std::all_of(text.begin(), text.end(), [](char c) { return hex_value(c) >= 0; });
}

[[nodiscard]] host::outcome<unique_fd> open_in(int directory, const char *name, int flags,
                                               mode_t mode = 0) {
    unique_fd out(::openat(directory, name, flags | O_NOFOLLOW | O_CLOEXEC, mode));
    if (!out)
        return host::failed(std::string("cannot open a job's file ") + name, errno);
    return out;
}

// A file that is read again and again, so the position does not count.
[[nodiscard]] std::optional<std::string> text_of(int file, std::size_t most) {
    struct stat at {};
    if (::fstat(file, &at) != 0 || at.st_size < 0 || static_cast<std::size_t>(at.st_size) > most)
        return {};
    std::string out(static_cast<std::size_t>(at.st_size), '\0');
    if (::pread(file, out.data(), out.size(), 0) != at.st_size)
        return {};
    return out;
}

} // namespace

bytes job_record::encode() const {
    bytes out;
    byte_writer w(out);
    w.put(record_magic);
    put_text(w, name);
    w.put(secret);
    for (const std::string *text : {&qube, &transport, &service_argument})
        put_text(w, *text);
    w.put(key_mark);
    w.u64(static_cast<std::uint64_t>(started_s));
    put_text(w, started);
    put_text(w, as_text(header));
    put_text(w, body);
    put_text(w, shown);
    return out;
}

host::outcome<job_record> job_record::decode(bytes_view file) {
    const auto bad = [] { return host::failed("the record of a job is damaged", EBADMSG); };
    byte_reader r(file);
    const auto magic = r.take(record_magic.size());
    if (!magic || as_text(*magic) != record_magic)
        return bad();
    job_record out;
    auto name = take_text(r);
    const auto secret = r.array<32>();
    auto qube = take_text(r);
    auto transport = take_text(r);
    auto argument = take_text(r);
    const auto mark = r.array<32>();
    const auto seconds = r.u64();
    auto started = take_text(r);
    const auto header = take_text(r);
    auto body = take_text(r);
    auto shown = take_text(r);
    if (!shown || r.left() != 0 || !is_name(*name))
        return bad();
    out.name = std::move(*name);
    out.secret = *secret;
    out.qube = std::move(*qube);
    out.transport = std::move(*transport);
    out.service_argument = std::move(*argument);
    out.key_mark = *mark;
    out.started_s = static_cast<std::int64_t>(*seconds);
    out.started = std::move(*started);
    out.header.assign(header->begin(), header->end());
    out.body = std::move(*body);
    out.shown = std::move(*shown);
    return out;
}

host::outcome<envelope> job_record::request() const {
    auto out = envelope::decode(header);
    if (!out)
        return host::failed("the record of a job holds no request", EBADMSG);
    if (out->body_follows)
        out->body = body;
    if (auto unpacked = out->unpack_arguments(); !unpacked)
        return host::failed("the record of a job holds no request", EBADMSG);
    return std::move(*out);
}

bytes job_end::encode() const {
    bytes out;
    byte_writer w(out);
    w.put(end_magic);
    w.u8(static_cast<std::uint8_t>(how.cause));
    w.u32(how.value);
    w.u64(stdin_bytes);
    w.u64(how.stdout_bytes);
    w.u64(how.stderr_bytes);
    w.u64(duration_ms);
    put_text(w, std::string_view(how.text).substr(0, limits::reason_text));
    return out;
}

std::optional<job_end> job_end::decode(bytes_view file) {
    byte_reader r(file);
    const auto magic = r.take(end_magic.size());
    if (!magic || as_text(*magic) != end_magic)
        return {};
    job_end out;
    const auto cause = r.u8();
    const auto value = r.u32();
    const auto in = r.u64();
    const auto written = r.u64();
    const auto errors = r.u64();
    const auto duration = r.u64();
    auto text = take_text(r);
    if (!text || r.left() != 0 || text->size() > limits::reason_text)
        return {};
    out.how = {static_cast<end_cause>(*cause), *value, *written, *errors, std::move(*text)};
    out.stdin_bytes = *in;
    out.duration_ms = *duration;
    if (qvmremote::name(out.how.cause) == "unknown")
        return {};
    return out;
}

host::outcome<job_files> job_files::make(int qube_directory, const command_id &id,
                                         const job_record &what) {
    if (::mkdirat(qube_directory, id.text().c_str(), 0700) != 0)
        return host::failed("cannot make the directory of a job", errno);
    job_files out;
    auto at = open_in(qube_directory, id.text().c_str(), O_RDONLY | O_DIRECTORY);
    if (!at)
        return tl::unexpected(at.error());
    out.directory = std::move(*at);
    constexpr int fresh = O_RDWR | O_CREAT | O_EXCL;
    // Nothing is synced: after a crash of the machine no job runs, and what is missing here says so.
    const auto record = open_in(out.directory.get(), "job", fresh, 0600);
    if (!record)
        return tl::unexpected(record.error());
    if (!host::write_all(record->get(), as_text(what.encode())))
        return host::failed("cannot write the record of a job", errno);
    for (const auto &[name, file] :
         {std::pair{"out", &out.out}, {"err", &out.err}, {"end", &out.end}}) {
        auto made = open_in(out.directory.get(), name, fresh, 0600);
        if (!made)
            return tl::unexpected(made.error());
        *file = std::move(*made);
    }
    return out;
}

host::outcome<job_files> job_files::open(int qube_directory, const command_id &id) {
    job_files out;
    auto at = open_in(qube_directory, id.text().c_str(), O_RDONLY | O_DIRECTORY);
    if (!at)
        return tl::unexpected(at.error());
    out.directory = std::move(*at);
    for (const auto &[name, file] :
         {std::pair{"out", &out.out}, {"err", &out.err}, {"end", &out.end}}) {
        auto opened =
            open_in(out.directory.get(), name, name[1] == 'n' ? O_RDWR : O_RDONLY | O_NONBLOCK);
        if (!opened)
            return tl::unexpected(opened.error());
        *file = std::move(*opened);
    }
    return out;
}

host::outcome<job_record> job_files::record() const {
    const auto file = open_in(directory.get(), "job", O_RDONLY | O_NONBLOCK);
    if (!file)
        return tl::unexpected(file.error());
    const auto text = text_of(file->get(), largest_record);
    if (!text)
        return host::failed("cannot read the record of a job", EBADMSG);
    return job_record::decode(as_bytes(*text));
}

std::optional<job_end> job_files::ended() const {
    const auto text = text_of(end.get(), largest_end);
    return text ? job_end::decode(as_bytes(*text)) : std::nullopt;
}

void remove_job_files(int qube_directory, const command_id &id) noexcept {
    const unique_fd at(::openat(qube_directory, id.text().c_str(),
                                O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!at)
        return;
    for (const char *name : {"out", "err", "end", "job"})
        ::unlinkat(at.get(), name, 0);
    ::unlinkat(qube_directory, id.text().c_str(), AT_REMOVEDIR);
}

job_output::extent job_output::extent_of(int file) noexcept {
    struct stat at {};
    if (::fstat(file, &at) != 0)
        return {};
    const auto end = static_cast<std::uint64_t>(at.st_size);
    const off_t first = ::lseek(file, 0, SEEK_DATA);
    // ENXIO: there is only a hole. Otherwise the file system knows no holes.
    return {first >= 0                         ? std::min(static_cast<std::uint64_t>(first), end)
            : errno == ENXIO && at.st_size > 0 ? end
                                               : 0,
            end};
}

std::uint64_t job_output::kept(int file) noexcept {
    struct stat at {};
    return ::fstat(file, &at) == 0 ? static_cast<std::uint64_t>(at.st_blocks) * 512 : 0;
}

job_output::piece job_output::read(std::span<std::uint8_t> to) noexcept {
    piece out;
    for (;;) {
        struct stat at {};
        if (::fstat(file_, &at) != 0 || at_ >= static_cast<std::uint64_t>(at.st_size))
            return out;
        const off_t data = ::lseek(file_, static_cast<off_t>(at_), SEEK_DATA);
        if (data < 0 && errno == ENXIO) { // a hole up to the end that fstat has seen, or further
            out.skipped += static_cast<std::uint64_t>(at.st_size) - at_;
            at_ = static_cast<std::uint64_t>(at.st_size);
            continue;
        }
        std::uint64_t most = to.size();
        if (data >= 0) {
            out.skipped += static_cast<std::uint64_t>(data) - at_;
            at_ = static_cast<std::uint64_t>(data);
            if (const off_t hole = ::lseek(file_, data, SEEK_HOLE); hole > data)
                most = std::min(most, static_cast<std::uint64_t>(hole - data));
        }
        const ssize_t n = ::pread(file_, to.data(), most, static_cast<off_t>(at_));
        if (n <= 0)
            return out;
        // If the keeper made a hole meanwhile, the bytes may be zeros of the hole. Holes only grow
        // from the beginning, so the first byte tells.
        if (data >= 0 && ::lseek(file_, data, SEEK_DATA) != data)
            continue;
        at_ += static_cast<std::uint64_t>(n);
        out.size = static_cast<std::size_t>(n);
        return out;
    }
}

void job_recorder::append(bool is_stdout, bytes_view data) noexcept {
    lane &to = lanes_[is_stdout ? 0 : 1];
    while (!data.empty()) {
        // Without holes, the newest is lost in place of the oldest.
        const bool is_full = !can_drop_ && kept() >= most_;
        if (is_full) {
            to.end += data.size();
            [[maybe_unused]] const int shown = ::ftruncate(to.file, static_cast<off_t>(to.end));
            return;
        }
        const ssize_t n = ::pwrite(to.file, data.data(), data.size(), static_cast<off_t>(to.end));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && drop_some()) // the disk is full
            continue;
        // When nothing helps, the bytes are lost, and a hole says so. The job goes on.
        const std::uint64_t done = n > 0 ? static_cast<std::uint64_t>(n) : data.size();
        to.end += done;
        if (n <= 0 && ::ftruncate(to.file, static_cast<off_t>(to.end)) != 0)
            return;
        data = data.subspan(done);
    }
    while (kept() > most_ && drop_some()) {
    }
}

// Drops a part of the stream that keeps more. Returns whether it could.
bool job_recorder::drop_some() noexcept {
    constexpr std::uint64_t block = 4096; // a hole is made of whole blocks
    lane &from =
        lanes_[0].end - lanes_[0].first >= lanes_[1].end - lanes_[1].first ? lanes_[0] : lanes_[1];
    const std::uint64_t part = std::max(most_ / 16, block);
    const std::uint64_t first = (from.first + part) / block * block;
    if (!can_drop_ || first <= from.first || first > from.end)
        return false;
    can_drop_ =
        ::fallocate(from.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(from.first), static_cast<off_t>(first - from.first)) == 0;
    if (can_drop_)
        from.first = first;
    return can_drop_;
}

} // namespace qvmremote::dom0
