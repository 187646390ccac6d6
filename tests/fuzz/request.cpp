// SPDX-License-Identifier: GPL-2.0-or-later
// Checks I1: a header that was not signed does not verify. A signed one verifies only under its
// key, and becomes a request only with the body that it announces.

#include <qvmremote/token.hpp>

#include "support/ends.hpp"
#include "target.hpp"

using namespace qvmremote;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    static const std::vector<secret> keys = test::one_key();
    static const std::vector<secret> other = test::one_key(std::string(64, '0'));
    const bytes_view input(data, size);
    const digest256 t = sha256({});
    const challenge fresh{};
    require(!request_verifier::verify(keys, t, fresh, input));

    // The first two bytes say where the header ends and a body begins.
    if (size < 2)
        return 0;
    const std::size_t middle = std::min<std::size_t>(data[0] * 256u + data[1], size - 2);
    const bytes_view header = input.subspan(2, middle);
    const std::string body(as_text(input.subspan(2 + middle)));
    const digest256 token = request_signer(keys[0]).token(t, fresh, header);
    bytes payload(token.begin(), token.end());
    byte_writer(payload).put(header);
    require(!request_verifier::verify(other, t, fresh, payload));
    const auto verified_header = request_verifier::verify(keys, t, fresh, payload);
    require(verified_header && (**verified_header).header.size() == header.size());
    auto decoded = request_verifier::decode(*verified_header);
    require(decoded.has_value() == envelope::decode(header).has_value());
    if (!decoded)
        return 0;
    const bool packed = (**decoded).has_packed_arguments();
    const bool follows = (**decoded).body_follows;
    const digest256 promised = (**decoded).body_digest;
    const auto whole = request_verifier::complete(std::move(*decoded), body);
    if (packed) {
        require(!whole || sha256(as_bytes(body)) == promised);
        if (whole) {
            // The unpacked request packs to the same bytes, so it has only one form.
            const envelope &out = (**whole).header;
            require(!out.has_packed_arguments() && !out.arguments.empty() && !out.body_follows);
            std::string again;
            for (const std::string &word : out.arguments)
                again.append(word).push_back('\0');
            bytes length(4);
            store_u32(length.data(), static_cast<std::uint32_t>(again.size()));
            require(std::string(as_text(length)) + again + out.body == body);
            require(out.kind == request_kind::script
                        ? !out.body.empty()
                        : out.body.empty() && !out.arguments[0].empty());
        }
    } else if (follows)
        require(!whole || (sha256(as_bytes(body)) == promised && (**whole).header.body == body));
    else
        require(whole.has_value() == body.empty());
    if (whole)
        require((**whole).header.body.size() == (**whole).header.body_length);
    return 0;
}
