//! Records of the index image. All integers are little-endian; there is no padding.

/// `S_IFMT`: the file type in a mode.
const TYPE_MASK: u32 = 0o170_000;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// The type bits of `st_mode`.
    pub const fn mode_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Symlink => 0o120_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
        }
    }

    /// What a `st_mode` says; a socket is taken for a file.
    pub const fn of_mode(mode: u32) -> Self {
        match mode & TYPE_MASK {
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            0o010_000 => Self::Fifo,
            _ => Self::File,
        }
    }
}

/// How a unit is packed in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    Plain,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
    /// One LZ4 block without a frame.
    Lz4Block,
    /// Deflate data from some block on, perhaps of several gzip members; the unit's [`Span`] says
    /// how to begin.
    Deflate,
}

impl Codec {
    pub(super) const fn to_byte(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
            Self::Lz4Block => 3,
            Self::Deflate => 4,
        }
    }

    pub(super) const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Gzip,
            2 => Self::Zstd,
            3 => Self::Lz4Block,
            4 => Self::Deflate,
            _ => Self::Plain,
        }
    }
}

/// A record of fixed size in the image.
pub(super) trait Record: Sized {
    /// Bytes it takes.
    const LEN: usize;
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it from exactly [`Self::LEN`] bytes.
    fn get(bytes: &[u8]) -> Self;
}

/// An integer or byte array as it lies in a record.
pub(super) trait Field: Sized {
    /// Writes it to the first bytes of `out`.
    fn set(&self, out: &mut [u8]);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! integer_fields {
    ($($int:ty),*) => {$(
        impl Field for $int {
            fn set(&self, out: &mut [u8]) {
                out[..size_of::<Self>()].copy_from_slice(&self.to_le_bytes());
            }
            #[inline]
            fn get(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<Self>()];
                raw.copy_from_slice(&bytes[..size_of::<Self>()]);
                Self::from_le_bytes(raw)
            }
        }
    )*};
}
integer_fields!(u8, u16, u32, u64, i64);

impl Field for [u8; 32] {
    fn set(&self, out: &mut [u8]) {
        out[..32].copy_from_slice(self);
    }
    fn get(bytes: &[u8]) -> Self {
        let mut raw = [0; 32];
        raw.copy_from_slice(&bytes[..32]);
        raw
    }
}

/// Declares a struct and how it lies in the image: its fields one after the other.
macro_rules! record {
    ($(#[$doc:meta])* $vis:vis struct $name:ident {
        $($(#[$field_doc:meta])* $field_vis:vis $field:ident: $kind:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis struct $name { $($(#[$field_doc])* $field_vis $field: $kind,)* }

        impl Record for $name {
            const LEN: usize = 0 $(+ size_of::<$kind>())*;

            #[allow(unused_assignments, reason = "the last field's end is not needed")]
            fn put(&self, out: &mut Vec<u8>) {
                let mut bytes = [0; Self::LEN];
                let mut at = 0;
                $(
                    Field::set(&self.$field, &mut bytes[at..]);
                    at += size_of::<$kind>();
                )*
                out.extend_from_slice(&bytes);
            }

            #[allow(unused_assignments, reason = "the last field's end is not needed")]
            #[inline]
            fn get(bytes: &[u8]) -> Self {
                let bytes = &bytes[..Self::LEN];
                let mut at = 0;
                $(
                    let $field = <$kind as Field>::get(&bytes[at..]);
                    at += size_of::<$kind>();
                )*
                Self { $($field,)* }
            }
        }
    };
}

record! {
    /// A file, directory, link or device.
    pub struct Inode {
        /// Type and permissions, as `st_mode`.
        pub mode: u32,
        pub(super) flags: u32,
        /// Owner.
        pub uid: u32,
        /// Group.
        pub gid: u32,
        /// Names that this inode has in its own layer.
        pub nlink: u32,
        /// Nanoseconds of the modification time.
        pub mtime_nsec: u32,
        /// Seconds of the modification time since 1970.
        pub mtime: i64,
        /// Bytes of a regular file, or of a symbolic link's target.
        pub size: u64,
        pub(super) xattr_first: u32,
        pub(super) xattr_count: u32,
        pub(super) data_first: u32,
        pub(super) data_count: u32,
        /// File of the store that holds the content: 0 is shared, others hold one file each.
        pub segment: u32,
        /// Where in that file the content begins.
        pub base: u64,
    }
}

/// The directory hides everything below it in lower layers.
pub(super) const INODE_OPAQUE: u32 = 1;
/// The directory has no entry of its own; only entries below it name it.
pub(super) const INODE_IMPLIED: u32 = 2;

impl Inode {
    /// What it is.
    pub fn kind(&self) -> Kind {
        Kind::of_mode(self.mode)
    }

    /// Whether it is a directory that hides all of its lower namesakes' entries.
    pub fn is_opaque(&self) -> bool {
        self.flags & INODE_OPAQUE != 0
    }

    /// Whether the layer says nothing about this directory but that something lies in it.
    pub fn is_implied(&self) -> bool {
        self.flags & INODE_IMPLIED != 0
    }

    /// Major and minor number of a device.
    pub fn rdev(&self) -> (u32, u32) {
        match self.kind() {
            Kind::CharDevice | Kind::BlockDevice => (self.data_first, self.data_count),
            _ => (0, 0),
        }
    }
}

record! {
    /// A name in a directory.
    pub struct Dirent {
        pub(super) name: u32,
        pub(super) name_len: u16,
        pub(super) flags: u16,
        pub(super) inode: u32,
    }
}

/// A whiteout: the name is gone from lower layers. The same layer may give it anew.
pub(super) const DIRENT_HIDES: u16 = 1;
/// The inode of a name that is a whiteout only.
pub(super) const NO_INODE: u32 = u32::MAX;

impl Dirent {
    /// The inode, or `None` for a mere whiteout.
    pub fn inode(&self) -> Option<u32> {
        (self.inode != NO_INODE).then_some(self.inode)
    }

    /// Whether lower layers' entries of this name are hidden by a whiteout.
    pub fn hides(&self) -> bool {
        self.flags & DIRENT_HIDES != 0
    }
}

record! {
    pub(super) struct Xattr {
        pub(super) name: u32,
        pub(super) name_len: u16,
        pub(super) value: u32,
        pub(super) value_len: u32,
    }
}

record! {
    /// A piece of a file that is present or absent as a whole.
    pub struct Chunk {
        /// Offset in the file.
        pub file_offset: u64,
        /// Length in bytes.
        pub len: u32,
        /// The unit of the blob that holds it.
        pub unit: u32,
        /// Offset in what the unit unpacks to.
        pub inner: u32,
        /// The inode it belongs to.
        pub inode: u32,
        /// Digest of its bytes, by the index's algorithm; without meaning where units have digests
        /// ([`Span`]).
        pub digest: [u8; 32],
    }
}

record! {
    /// A piece of a blob that is fetched and unpacked as a whole.
    pub struct Unit {
        /// The blob that holds it, by its place in the index's table.
        pub blob: u16,
        /// Offset in the blob.
        pub offset: u64,
        /// Packed length in bytes.
        pub len: u32,
        pub(super) codec: u8,
        pub(super) first: u32,
        pub(super) count: u32,
    }
}

impl Unit {
    /// How it is packed.
    pub fn codec(&self) -> Codec {
        Codec::from_byte(self.codec)
    }

    /// First byte of the blob behind it.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

record! {
    /// A blob that holds chunks.
    pub(super) struct BlobEntry {
        pub(super) digest: [u8; 32],
        pub(super) size: u64,
        /// Bytes of the blobs before it in the table, together.
        pub(super) before: u64,
    }
}

record! {
    /// What a unit has where chunks have no digests of their own.
    pub struct Span {
        /// SHA-256 of the unit as it lies in the blob.
        pub digest: [u8; 32],
        /// Bits of the unit's first byte that belong to it; 0 for all of that byte.
        pub bits: u8,
        pub(super) window: u32,
        pub(super) window_len: u32,
    }
}

record! {
    /// The image's head: what the sections hold, in the order in which they follow.
    pub(super) struct Head {
        pub(super) magic: u64,
        pub(super) layer: [u8; 32],
        pub(super) toc: [u8; 32],
        pub(super) blob_size: u64,
        pub(super) data_size: u64,
        pub(super) prefetch_units: u32,
        pub(super) prefetch_known: u8,
        pub(super) prefetch_list: u32,
        pub(super) algorithm: u8,
        pub(super) blobs: u32,
        pub(super) inodes: u32,
        pub(super) dirents: u32,
        pub(super) xattrs: u32,
        pub(super) chunks: u32,
        pub(super) units: u32,
        pub(super) unit_chunks: u32,
        pub(super) segments: u32,
        pub(super) spans: u32,
        pub(super) windows: u32,
        pub(super) strings: u32,
    }
}

/// `XBLAYER3` read as a little-endian integer.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"XBLAYER3");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_bytes() {
        let chunk = Chunk {
            file_offset: 1 << 40,
            len: 7,
            unit: 8,
            inner: 9,
            inode: 10,
            digest: [11; 32],
        };
        let mut bytes = Vec::new();
        chunk.put(&mut bytes);
        assert_eq!(bytes.len(), Chunk::LEN);
        assert_eq!(Chunk::get(&bytes), chunk);
        assert_eq!((Inode::LEN, Dirent::LEN, Unit::LEN), (68, 12, 23));
    }
}
