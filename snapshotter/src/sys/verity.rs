//! fs-verity: files that can never be written to again, and whose every read the kernel verifies.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `FS_IOC_ENABLE_VERITY`: `_IOW('f', 133, struct fsverity_enable_arg)`.
const ENABLE: libc::c_ulong = 0x4080_6685;
/// `FS_IOC_MEASURE_VERITY`: `_IOWR('f', 134, struct fsverity_digest)`.
const MEASURE: libc::c_ulong = 0xc004_6686;
/// Both `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u16 = 1;
const BLOCK_SIZE: u32 = 4096;

/// `struct fsverity_enable_arg`: no salt, no signature.
#[repr(C)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    rest: [u64; 11],
}

/// `struct fsverity_digest` with room for one of SHA-256.
#[repr(C)]
struct Measured {
    algorithm: u16,
    size: u16,
    digest: [u8; 32],
}

/// Seals a file that is open for reading, and by nobody for writing (`ETXTBSY`). The kernel reads
/// all of it, and everything is on disk when it is done.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    let how = Enable {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: BLOCK_SIZE,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        rest: [0; 11],
    };
    // SAFETY: the kernel reads the 128 bytes of the structure, which outlives the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), ENABLE as _, &raw const how) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The digest of all that a sealed file holds; `None` of one that is not sealed.
pub(crate) fn measure(file: &File) -> io::Result<Option<[u8; 32]>> {
    let mut found = Measured {
        algorithm: 0,
        size: 32,
        digest: [0; 32],
    };
    // SAFETY: the kernel writes the head and at most `size` bytes after it, all of the structure,
    // which nobody else refers to.
    if unsafe { libc::ioctl(file.as_raw_fd(), MEASURE as _, &raw mut found) } < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP | libc::ENOTTY) => Ok(None),
            _ => Err(error),
        };
    }
    if (found.algorithm, found.size) != (SHA256, 32) {
        return Err(io::Error::other("sealed with another algorithm"));
    }
    Ok(Some(found.digest))
}

/// Whether a file cannot be opened because what the kernel would verify it by is damaged.
pub(crate) fn is_broken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EBADMSG | libc::EMSGSIZE | libc::EUCLEAN)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_structures_have_their_lengths() {
        assert_eq!(size_of::<Enable>(), 128);
        assert_eq!(size_of::<Measured>(), 36);
    }

    #[test]
    fn a_file_that_nobody_has_sealed_has_no_digest() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure(&file).unwrap(), None);
    }
}
