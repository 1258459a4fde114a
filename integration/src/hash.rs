//! SHA-256 in the forms that caches and image layouts use.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Twelve digits that change whenever a recipe does.
pub(crate) fn key(recipe: &str) -> String {
    hex(&Sha256::digest(recipe)[..6])
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_the_beginning_of_the_digest() {
        assert_eq!(super::key(""), "e3b0c44298fc");
    }
}
