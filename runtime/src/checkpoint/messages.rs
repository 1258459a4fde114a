//! CRIU's image files (criu.org/Images) as bytes: two magic numbers, in the inventory one, then
//! messages, each after its length.

/// First word of all images of a checkpoint but the inventory.
const COMMON: u32 = 0x5456_4319;

/// The second word: what an image is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Cgroups = 0x5938_3330,
    Files = 0x5630_3138,
    Inventory = 0x5831_3116,
    Memory = 0x5749_2820,
    Mounts = 0x5556_3928,
    Namespaces = 0x5443_2030,
    Network = 0x5593_3752,
    Pagemap = 0x5608_4025,
    Tree = 0x5027_3030,
}

impl Kind {
    /// What an image begins with.
    fn head(self) -> Vec<u8> {
        let words = match self {
            Self::Inventory => vec![self as u32],
            _ => vec![COMMON, self as u32],
        };
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

/// The messages of an image; none if it is not of that kind, or damaged.
pub(crate) fn messages(content: &[u8], kind: Kind) -> Option<Vec<&[u8]>> {
    let mut rest = content.strip_prefix(&*kind.head())?;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (length, after) = word(rest)?;
        let (message, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        messages.push(message);
        rest = after;
    }
    Some(messages)
}

/// An image of messages.
pub(crate) fn encode<M: AsRef<[u8]>>(kind: Kind, messages: &[M]) -> Vec<u8> {
    let mut content = kind.head();
    for message in messages {
        let message = message.as_ref();
        content.extend_from_slice(&(message.len() as u32).to_le_bytes());
        content.extend_from_slice(message);
    }
    content
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*word), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_they_were_written() {
        let content = encode(Kind::Files, &[&b"one"[..], b"", b"three"]);
        let read = messages(&content, Kind::Files).expect("an image");
        assert_eq!(read, [&b"one"[..], b"", b"three"]);
        assert_eq!(messages(&content, Kind::Memory), None);
        assert_eq!(messages(&content[..content.len() - 1], Kind::Files), None);
        assert_eq!(messages(&content[..6], Kind::Files), None);
    }
}
