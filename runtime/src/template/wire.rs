//! Protobuf messages field by field: what is not of interest stays as it is, byte for byte, so that
//! images of a newer CRIU lose nothing.

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    /// A string, or a message.
    Bytes(&'a [u8]),
    /// A number of four or eight bytes.
    Fixed,
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
    /// All of it, number included.
    pub(super) raw: &'a [u8],
}

/// The fields of a message; after one that is damaged there are no more.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(&'a [u8]);

/// A message that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn advance(&mut self) -> Option<Field<'a>> {
        let start = self.0;
        let (key, rest) = number(start)?;
        let (value, rest) = match key & 7 {
            0 => {
                let (value, rest) = number(rest)?;
                (Value::Number(value), rest)
            }
            1 => (Value::Fixed, rest.get(8..)?),
            2 => {
                let (length, rest) = number(rest)?;
                let (bytes, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                (Value::Bytes(bytes), rest)
            }
            5 => (Value::Fixed, rest.get(4..)?),
            _ => return None,
        };
        self.0 = rest;
        Some(Field {
            number: key >> 3,
            value,
            raw: &start[..start.len() - rest.len()],
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.advance().ok_or(Damaged);
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The number that a field holds, the last one if there are several.
pub(super) fn number_of(message: &[u8], field: u64) -> Result<Option<u64>, Damaged> {
    let mut found = None;
    for next in Fields::of(message) {
        let next = next?;
        if let (true, Value::Number(value)) = (next.number == field, next.value) {
            found = Some(value);
        }
    }
    Ok(found)
}

/// A message with other numbers in some fields, which come last.
pub(super) fn with_numbers(message: &[u8], numbers: &[(u64, u64)]) -> Result<Vec<u8>, Damaged> {
    let mut changed = Vec::with_capacity(message.len() + 12 * numbers.len());
    for field in Fields::of(message) {
        let field = field?;
        if numbers.iter().all(|(number, _)| *number != field.number) {
            changed.extend_from_slice(field.raw);
        }
    }
    for (field, value) in numbers {
        put_number(&mut changed, *field, *value);
    }
    Ok(changed)
}

/// Appends a field with a number.
pub(super) fn put_number(message: &mut Vec<u8>, field: u64, value: u64) {
    put(message, field << 3);
    put(message, value);
}

/// Appends a field with a string or a message.
pub(super) fn put_bytes(message: &mut Vec<u8>, field: u64, value: &[u8]) {
    put(message, field << 3 | 2);
    put(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A number of seven bits a byte, and what follows it.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_fields_stay_as_they_are() {
        let mut message = Vec::new();
        put_number(&mut message, 3, 7);
        put_bytes(&mut message, 9, b"text");
        message.extend_from_slice(&[10 << 3 | 5, 1, 2, 3, 4, 11 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        let others = message[2..].to_vec();
        let changed = with_numbers(&message, &[(3, 300)]).expect("a message");
        assert_eq!(changed[..others.len()], others);
        assert_eq!(number_of(&changed, 3), Ok(Some(300)));
        assert_eq!(number_of(&changed, 4), Ok(None));
    }

    #[test]
    fn what_is_cut_off_is_damaged() {
        for bad in [
            &[0x80][..],
            &[8],
            &[0x12, 5, 1],
            &[0x0d, 1],
            &[3],
            &[0xff; 12],
        ] {
            assert_eq!(with_numbers(bad, &[]), Err(Damaged), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn numbers_are_read_as_they_were_written(field in 1u64..1 << 29, value: u64) {
            let mut message = Vec::new();
            put_number(&mut message, field, value);
            prop_assert_eq!(number_of(&message, field), Ok(Some(value)));
        }

        #[test]
        fn any_bytes_are_fields_or_damaged(bytes: Vec<u8>) {
            let mut covered = 0;
            for field in Fields::of(&bytes) {
                match field {
                    Ok(field) => covered += field.raw.len(),
                    Err(Damaged) => return Ok(()),
                }
            }
            prop_assert_eq!(covered, bytes.len());
        }
    }
}
