//! The list of open files, with one more that memory is mapped from. Pure.

use super::memory::Unusable;
use super::wire::{self, Fields, Value, put_bytes, put_number};
use crate::checkpoint::messages::{self as image, Kind};

/// Fields of `file_entry`.
const FILE_TYPE: u64 = 1;
const FILE_ID: u64 = 2;
const FILE_REGULAR: u64 = 3;
const REGULAR: u64 = 1;
/// Fields of `reg_file_entry`, and the number of fields in its `fown_entry`.
const ID: u64 = 1;
const FLAGS: u64 = 2;
const POSITION: u64 = 3;
const OWNER: u64 = 5;
const NAME: u64 = 6;
const MOUNT: u64 = 7;
const SIZE: u64 = 8;
const MODE: u64 = 10;
const OWNER_FIELDS: u64 = 5;

/// How the page file is called in images: without the first character this is the key that CRIU
/// asks for an inherited descriptor by, and nothing of that name is in the container.
pub(crate) const PAGE_FILE: &str = "/xebec:pages";

/// `files.img` as far as it matters here.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    messages: Vec<&'a [u8]>,
    /// The first number that no file has.
    pub(crate) next_id: u64,
    /// A mount that CRIU knows, as it writes it.
    mount: u64,
}

impl<'a> Files<'a> {
    pub(crate) fn parse(content: &'a [u8]) -> Result<Self, Unusable> {
        let messages = image::messages(content, Kind::Files).ok_or(Unusable::Damaged)?;
        let (mut highest, mut mount) = (0, None);
        for message in &messages {
            let id = wire::number_of(message, FILE_ID)?.ok_or(Unusable::Damaged)?;
            highest = highest.max(id);
            for field in Fields::of(message) {
                let field = field?;
                if let (FILE_REGULAR, Value::Bytes(file)) = (field.number, field.value) {
                    mount = mount.or(wire::number_of(file, MOUNT)?);
                }
            }
        }
        Ok(Self {
            messages,
            next_id: highest + 1,
            // The program of a process is a file; one without a mount is CRIU's -1.
            mount: mount.unwrap_or(1),
        })
    }

    /// The image with the page file of this size as many times as there are processes: CRIU takes
    /// areas of two processes for the same if they are at one address and of one file, wherever
    /// in it.
    pub(crate) fn with_page_file(&self, size: u64, times: u64) -> Vec<u8> {
        let added: Vec<_> = (self.next_id..self.next_id + times)
            .map(|id| self.page_file(id, size))
            .collect();
        let all = self.messages.iter().copied();
        let all: Vec<_> = all.chain(added.iter().map(Vec::as_slice)).collect();
        image::encode(Kind::Files, &all)
    }

    fn page_file(&self, id: u64, size: u64) -> Vec<u8> {
        let mut owner = Vec::new();
        for field in 1..=OWNER_FIELDS {
            put_number(&mut owner, field, 0);
        }
        let mut file = Vec::new();
        put_number(&mut file, ID, id);
        put_number(&mut file, FLAGS, 0);
        put_number(&mut file, POSITION, 0);
        put_bytes(&mut file, OWNER, &owner);
        put_bytes(&mut file, NAME, PAGE_FILE.as_bytes());
        put_number(&mut file, MOUNT, self.mount);
        put_number(&mut file, SIZE, size);
        put_number(&mut file, MODE, 0o100_400);
        let mut entry = Vec::new();
        put_number(&mut entry, FILE_TYPE, REGULAR);
        put_number(&mut entry, FILE_ID, id);
        put_bytes(&mut entry, FILE_REGULAR, &file);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_file_has_a_number_of_its_own_for_each_process() {
        let mut program = Vec::new();
        put_number(&mut program, MOUNT, 86);
        let mut entry = Vec::new();
        put_number(&mut entry, FILE_TYPE, REGULAR);
        put_number(&mut entry, FILE_ID, 7);
        put_bytes(&mut entry, FILE_REGULAR, &program);
        let content = image::encode(Kind::Files, &[&entry]);
        let files = Files::parse(&content).expect("an image");
        let changed = files.with_page_file(1 << 30, 2);
        let messages = image::messages(&changed, Kind::Files).expect("an image");
        assert_eq!(messages[0], entry);
        let again = Files::parse(&changed).expect("an image");
        assert_eq!((again.next_id, again.mount, messages.len()), (10, 86, 3));
        assert!(Files::parse(&content[..content.len() - 1]).is_err());
    }
}
