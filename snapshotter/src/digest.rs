//! Content digests: `sha256:` and 64 lower-case hex digits, nothing else.
//!
//! The OCI image specification also registers SHA-512; no registry or tool this crate talks to
//! writes it, so a digest that is not SHA-256 is refused where it enters.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// A SHA-256 digest, shown and serialised as `sha256:HEX`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest made of these 32 raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 hex digits without the algorithm, as used in file names.
    pub fn hex(&self) -> String {
        use fmt::Write as _;
        self.0
            .iter()
            .fold(String::with_capacity(64), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }

    /// Checks that `data` has this digest; `what` names the data in the error.
    pub fn verify(&self, data: &[u8], what: &str) -> Result<()> {
        self.expect(Self::of(data), what)
    }

    /// Checks that `actual` is this digest; `what` names the data in the error.
    pub fn expect(&self, actual: Self, what: &str) -> Result<()> {
        if *self == actual {
            return Ok(());
        }
        Err(Error::DigestMismatch {
            what: what.to_owned(),
            expected: self.to_string(),
            actual: actual.to_string(),
        })
    }
}

/// How chunks are digested. Blobs and documents always have SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// SHA-256.
    #[default]
    Sha256,
    /// BLAKE3 with its default length of 32 bytes.
    Blake3,
}

impl Algorithm {
    /// Hashes `data`.
    pub fn of(self, data: &[u8]) -> [u8; 32] {
        match self {
            Self::Sha256 => Sha256::digest(data).into(),
            Self::Blake3 => *blake3::hash(data).as_bytes(),
        }
    }

    /// Checks that `data` has the digest `expected`; `what` names the data in the error.
    pub fn verify(self, data: &[u8], expected: &[u8; 32], what: &str) -> Result<()> {
        let actual = self.of(data);
        if actual == *expected {
            return Ok(());
        }
        let name = match self {
            Self::Sha256 => "sha256",
            Self::Blake3 => "blake3",
        };
        let text = |bytes| format!("{name}:{}", Digest::from_bytes(bytes).hex());
        Err(Error::DigestMismatch {
            what: what.to_owned(),
            expected: text(*expected),
            actual: text(actual),
        })
    }

    /// How an index stores it.
    pub(crate) const fn to_byte(self) -> u8 {
        self as u8
    }

    pub(crate) const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Blake3,
            _ => Self::Sha256,
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_sha256(text).map(Self).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "digest {text:?} (sha256: and 64 hex digits expected)"
            ))
        })
    }
}

fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let hex: &[u8; 64] = text.strip_prefix("sha256:")?.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    let mut all = 0;
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let (high, low) = (HEX[usize::from(pair[0])], HEX[usize::from(pair[1])]);
        all |= high | low;
        *byte = (high << 4) | low;
    }
    (all != NO_DIGIT).then_some(bytes)
}

/// Stands for what is no hexadecimal digit; no combination of digits gives it.
const NO_DIGIT: u8 = 0xff;

/// The value of each digit. Upper-case ones are not valid in an OCI digest: two spellings would
/// name one blob.
const HEX: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value] as usize] = value as u8;
        value += 1;
    }
    values
};

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream piece by piece.
#[derive(Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// An empty hash.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `data`.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Passes writes on to another writer, hashing and counting what was written.
pub struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Hashes from the next byte on.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Hasher::new(),
            count: 0,
        }
    }

    /// Bytes written so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The writer, the digest and the length of what went through.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(data)?;
        self.hasher.update(&data[..written]);
        self.count += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Passes reads on from another reader, hashing and counting what was read.
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    count: u64,
}

impl<R: Read> HashingReader<R> {
    /// Hashes from the next byte on.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Hasher::new(),
            count: 0,
        }
    }

    /// The reader, the digest and the length of what went through.
    pub fn finish(self) -> (R, Digest, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_survives_text_and_json() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.hex(), EMPTY["sha256:".len()..]);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{EMPTY}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    }

    #[test]
    fn anything_but_lower_case_sha256_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let cases = [
            "",
            "sha256:",
            "sha256:00",
            &EMPTY[7..],
            &EMPTY[..70],
            &upper,
        ];
        for text in cases.into_iter().chain([
            "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:../../../../../etc/passwd0000000000000000000000000000000000000000",
        ]) {
            assert!(text.parse::<Digest>().is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn hashing_reader_and_writer_agree_with_of() {
        let data = b"some bytes that are hashed on their way";
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(data).unwrap();
        assert_eq!(
            writer.finish(),
            (data.to_vec(), Digest::of(data), data.len() as u64)
        );
        let mut reader = HashingReader::new(&data[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let (_, digest, count) = reader.finish();
        assert_eq!((digest, count), (Digest::of(data), data.len() as u64));
    }

    #[test]
    fn each_algorithm_accepts_its_own_digest_only() {
        let blake3 = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        let found = Digest::from_bytes(Algorithm::Blake3.of(b"")).hex();
        assert_eq!(found, blake3, "the published digest of nothing");
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let digest = algorithm.of(b"data");
            algorithm.verify(b"data", &digest, "it").unwrap();
            algorithm.verify(b"date", &digest, "it").unwrap_err();
            assert_eq!(Algorithm::from_byte(algorithm.to_byte()), algorithm);
        }
        let other = Algorithm::Sha256.of(b"data");
        let error = Algorithm::Blake3.verify(b"data", &other, "it").unwrap_err();
        assert!(error.to_string().contains("blake3:"), "{error}");
    }

    #[test]
    fn a_mismatch_names_the_data_and_both_digests() {
        let error = Digest::of(b"a")
            .verify(b"b", "layer 3")
            .unwrap_err()
            .to_string();
        assert!(error.contains("layer 3"), "{error}");
        assert!(error.contains(&Digest::of(b"a").to_string()), "{error}");
        assert!(error.contains(&Digest::of(b"b").to_string()), "{error}");
    }
}
