//! The identity of a log.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// Digits of an id in its written form.
const DIGITS: usize = 32;

/// The identity of one log: a position means something only in the log that gave it out.
///
/// It is written as 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogId([u8; 16]);

impl LogId {
    /// An id that no other log has.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id of what `parts` identify together. The same parts give the same id everywhere.
    #[must_use]
    pub fn derived(parts: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        let hash: [u8; 32] = hasher.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        Self(bytes)
    }

    /// Its bytes, as [`Self::from_bytes`] takes them.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The text is not the written form of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 32 lower-case hexadecimal digits")]
pub struct LogIdError;

impl FromStr for LogId {
    type Err = LogIdError;

    fn from_str(text: &str) -> Result<Self, LogIdError> {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return Err(LogIdError);
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| LogIdError)?;
        Ok(Self(number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = LogId::from_bytes([0, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xab]);
        assert_eq!(id.to_string(), "0001ff000000000000000000000000ab");
        for id in [id, LogId::random()] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn nothing_else_is_an_id() {
        let id = LogId::random().to_string();
        let texts = [
            "",
            "0",
            &id[1..],
            &format!("{id}0"),
            &format!(" {}", &id[1..]),
            &format!("+{}", &id[1..]),
            &format!("A{}", &id[1..]),
            &format!("g{}", &id[1..]),
            &format!("é{}", &id[2..]),
        ];
        for text in texts {
            assert_eq!(text.parse::<LogId>(), Err(LogIdError), "{text:?}");
        }
    }

    #[test]
    fn ids_differ_where_what_they_stand_for_differs() {
        assert_ne!(LogId::random(), LogId::random());
        let id = LogId::derived(&["weir", "2024"]);
        assert_eq!(id, LogId::derived(&["weir", "2024"]));
        assert_ne!(id, LogId::derived(&["weir2", "024"]));
    }
}
