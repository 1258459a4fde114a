//! A compiled filter, and its form on disk.

use libc::sock_filter;
use sha2::{Digest, Sha256};

/// First bytes of a stored filter; the last one counts versions of the format.
const MAGIC: &[u8; 8] = b"xbcSECC\x01";
const HEADER: usize = 20;
const INSTRUCTION: usize = 8;
const DIGEST: usize = 32;

/// A seccomp filter, ready to be loaded.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The program for `struct sock_fprog`; at most 4096 instructions.
    pub insns: Vec<sock_filter>,
    /// `SECCOMP_FILTER_FLAG_*` for seccomp(2); 0 means that prctl(2) serves, too.
    pub flags: u32,
    /// Whether loading gives a listener descriptor (`SECCOMP_FILTER_FLAG_NEW_LISTENER` is set).
    pub notify: bool,
}

impl Filter {
    /// The filter with a header and the digest of both.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.insns.len() * INSTRUCTION + DIGEST);
        bytes.extend(MAGIC);
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(u32::from(self.notify).to_le_bytes());
        bytes.extend((self.insns.len() as u32).to_le_bytes());
        for insn in &self.insns {
            bytes.extend(insn.code.to_le_bytes());
            bytes.extend([insn.jt, insn.jf]);
            bytes.extend(insn.k.to_le_bytes());
        }
        let digest = Sha256::digest(&bytes);
        bytes.extend(digest);
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` if a single bit of it differs.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let body = bytes.len().checked_sub(DIGEST)?;
        let (body, digest) = bytes.split_at(body);
        if body.len() < HEADER || !body.starts_with(MAGIC) || Sha256::digest(body)[..] != *digest {
            return None;
        }
        let word = |at: usize| {
            body.get(at..at + 4)
                .and_then(|w| w.try_into().ok())
                .map(u32::from_le_bytes)
        };
        let (flags, notify, count) = (word(8)?, word(12)?, word(16)? as usize);
        if body.len() != HEADER + count.checked_mul(INSTRUCTION)? || notify > 1 {
            return None;
        }
        let insns = body[HEADER..]
            .chunks_exact(INSTRUCTION)
            .map(|raw| sock_filter {
                code: u16::from_le_bytes([raw[0], raw[1]]),
                jt: raw[2],
                jf: raw[3],
                k: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
            })
            .collect();
        Some(Self {
            insns,
            flags,
            notify: notify == 1,
        })
    }
}
