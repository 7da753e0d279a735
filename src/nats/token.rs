//! Any text as one token of a subject.
//!
//! Bytes other than ASCII letters, digits, `-` and `_` are written as a mark and two hexadecimal digits, so dots, spaces,
//! wildcards and any Unicode come back as they were, and no two texts share a token. The mark is `%`, or `=` in keys of a
//! bucket, which take no `%`.

use std::fmt::Write as _;

/// Appends `text` to `out` as a token; a byte becomes three at most.
pub(crate) fn escape(text: &str, mark: char, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "{mark}{byte:02X}");
        }
    }
}

/// The text that became `token`; none when no text did.
pub(crate) fn unescape(token: &str, mark: char) -> Option<String> {
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if char::from(*first) != mark {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}
