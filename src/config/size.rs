//! Sizes, written exactly: `ByteSize` itself rounds to one decimal when it is serialized.

use bytesize::ByteSize;
use serde::{Deserialize as _, Deserializer, Serializer};

const UNITS: [(u64, &str); 4] = [
    (1 << 40, "TiB"),
    (1 << 30, "GiB"),
    (1 << 20, "MiB"),
    (1 << 10, "KiB"),
];

/// The size in the largest unit that needs no fraction: `64KiB`, `1500B`.
pub(super) fn exact(size: ByteSize) -> String {
    let bytes = size.as_u64();
    UNITS
        .iter()
        .find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit))
        .map_or_else(
            || format!("{bytes}B"),
            |(unit, name)| format!("{}{name}", bytes / unit),
        )
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(super) fn serialize<S: Serializer>(size: &ByteSize, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&exact(*size))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ByteSize, D::Error> {
    ByteSize::deserialize(deserializer)
}
