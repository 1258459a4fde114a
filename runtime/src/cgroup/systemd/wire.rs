//! D-Bus messages as bytes (the D-Bus specification, "Message Protocol"), in this machine's order.

use super::value::Value;

/// First byte of a message: the order of its bytes.
const ORDER: u8 = if cfg!(target_endian = "little") {
    b'l'
} else {
    b'B'
};
const VERSION: u8 = 1;
const CALL: u8 = 1;
/// Nobody waits for an answer.
const NO_REPLY: u8 = 1;

/// Bytes of a message before its header fields.
pub(super) const PROLOGUE: usize = 16;
/// Longer messages are none that we asked for.
const MAX_LENGTH: usize = 1 << 20;

/// A method call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
    pub(super) body: &'a [Value],
    /// Whether the answer is of interest.
    pub(super) answered: bool,
}

impl Call<'_> {
    /// The bytes of the message.
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut body = Encoder::default();
        let mut signature = String::new();
        for value in self.body {
            signature.push_str(&value.signature());
            body.value(value);
        }
        let mut message = Encoder::default();
        let flags = if self.answered { 0 } else { NO_REPLY };
        message.bytes.extend([ORDER, CALL, flags, VERSION]);
        message.u32(body.bytes.len() as u32);
        message.u32(serial);
        message.array("(yv)", |message| {
            let text = |text: &str| Value::string(text);
            message.field(1, "o", &text(self.path));
            message.field(2, "s", &text(self.interface));
            message.field(3, "s", &text(self.member));
            message.field(6, "s", &text(self.destination));
            if !signature.is_empty() {
                message.align(8);
                message.bytes.push(8);
                message.signature("g");
                message.signature(&signature);
            }
        });
        message.align(8);
        message.bytes.extend(body.bytes);
        message.bytes
    }
}

/// Bytes with the alignment that the types demand.
#[derive(Default)]
struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn number<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N);
        self.bytes.extend(bytes);
    }

    fn u32(&mut self, number: u32) {
        self.number(number.to_ne_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.bytes.push(signature.len() as u8);
        self.bytes.extend(signature.as_bytes());
        self.bytes.push(0);
    }

    /// A header field: its number, and a variant of the given type.
    fn field(&mut self, number: u8, signature: &str, value: &Value) {
        self.align(8);
        self.bytes.push(number);
        self.signature(signature);
        self.value(value);
    }

    /// The length counts from the first element, after the padding before it.
    fn array(&mut self, element: &str, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(alignment(element));
        let start = self.bytes.len();
        elements(self);
        let length = (self.bytes.len() - start) as u32;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Byte(n) => self.bytes.push(*n),
            Value::Bool(truth) => self.u32(u32::from(*truth)),
            Value::Int16(n) => self.number(n.to_ne_bytes()),
            Value::Uint16(n) => self.number(n.to_ne_bytes()),
            Value::Int32(n) => self.number(n.to_ne_bytes()),
            Value::Uint32(n) => self.u32(*n),
            Value::Int64(n) => self.number(n.to_ne_bytes()),
            Value::Uint64(n) => self.number(n.to_ne_bytes()),
            Value::Double(n) => self.number(n.to_ne_bytes()),
            Value::String(text) | Value::ObjectPath(text) => self.string(text),
            Value::Array(element, elements) => self.array(element, |encoder| {
                for element in elements {
                    encoder.value(element);
                }
            }),
            Value::Struct(members) => {
                self.align(8);
                for member in members {
                    self.value(member);
                }
            }
            Value::Variant(value) => {
                self.signature(&value.signature());
                self.value(value);
            }
        }
    }
}

/// The alignment of a type, by the first letter of its signature.
fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'n' | b'q') => 2,
        Some(b'x' | b't' | b'd' | b'(' | b'{') => 8,
        _ => 4,
    }
}

/// What a received message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Reply,
    Error,
    Signal,
    Other,
}

/// A received message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    /// Serial of the call that it answers.
    pub(super) answers: Option<u32>,
    pub(super) member: String,
    pub(super) error: String,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// Length of the whole message that starts with `prologue`.
pub(super) fn length(prologue: &[u8; PROLOGUE]) -> Option<usize> {
    let mut reader = Reader::new(prologue);
    if reader.u8()? != ORDER {
        return None;
    }
    reader.at = 4;
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = reader.u32()? as usize;
    let length = PROLOGUE
        .checked_add(fields)?
        .checked_next_multiple_of(8)?
        .checked_add(body)?;
    (length <= MAX_LENGTH).then_some(length)
}

impl Message {
    /// Reads a whole message.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        reader.u8()?;
        let kind = match reader.u8()? {
            2 => Kind::Reply,
            3 => Kind::Error,
            4 => Kind::Signal,
            _ => Kind::Other,
        };
        reader.at = 12;
        let end = reader.u32()? as usize + PROLOGUE;
        let mut message = Self {
            kind,
            answers: None,
            member: String::new(),
            error: String::new(),
            signature: String::new(),
            body: bytes.get(end.next_multiple_of(8)..)?.to_vec(),
        };
        while reader.at < end {
            reader.align(8);
            let number = reader.u8()?;
            match (number, reader.signature()?) {
                (5, "u") => message.answers = Some(reader.u32()?),
                (3, "s") => reader.string()?.clone_into(&mut message.member),
                (4, "s") => reader.string()?.clone_into(&mut message.error),
                (8, "g") => reader.signature()?.clone_into(&mut message.signature),
                (_, "s" | "o") => reader.string().map(drop)?,
                (_, "g") => reader.signature().map(drop)?,
                (_, "u") => reader.u32().map(drop)?,
                _ => return None,
            }
        }
        Some(message)
    }

    /// The first argument, if it is a text.
    pub(super) fn text(&self) -> Option<&str> {
        let mut reader = Reader::new(&self.body);
        match self.signature.as_bytes().first()? {
            b's' | b'o' => reader.string(),
            b'v' => (reader.signature()? == "s").then(|| reader.string())?,
            _ => None,
        }
    }

    /// Job and result of the signal `JobRemoved`.
    pub(super) fn removed_job(&self) -> Option<(&str, &str)> {
        if self.kind != Kind::Signal || self.member != "JobRemoved" || self.signature != "uoss" {
            return None;
        }
        let mut reader = Reader::new(&self.body);
        reader.u32()?;
        let job = reader.string()?;
        let _unit = reader.string()?;
        Some((job, reader.string()?))
    }
}

/// Bytes read with the alignment that the types demand; nothing is believed about lengths.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        let bytes = self.take(4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    }

    fn terminated(&mut self, length: usize) -> Option<&'a str> {
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        (self.u8()? == 0).then_some(text)
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = self.u8()?.into();
        self.terminated(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOP: Call<'_> = Call {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member: "StopUnit",
        body: &[],
        answered: true,
    };

    #[test]
    fn a_call_has_the_layout_of_the_specification() {
        let body = [
            Value::string("a"),
            Value::Array(
                "(sv)".to_owned(),
                vec![property("Delegate", Value::Bool(true))],
            ),
        ];
        let bytes = Call {
            body: &body,
            ..STOP
        }
        .encode(7);
        assert_eq!(&bytes[..4], [ORDER, 1, 0, 1]);
        let fields = u32::from_ne_bytes(bytes[12..16].try_into().expect("four")) as usize;
        let body = &bytes[(16 + fields).next_multiple_of(8)..];
        let expected: [&[u8]; 6] = [
            // "a", then padding to the array's length
            &[1, 0, 0, 0, b'a', 0, 0, 0],
            // length of the array, which counts from its first structure, aligned to eight
            &[20, 0, 0, 0, 0, 0, 0, 0],
            &[8, 0, 0, 0],
            b"Delegate\0",
            &[1, b'b', 0],
            &[1, 0, 0, 0],
        ];
        let expected = expected.concat();
        assert_eq!(body, expected);
        assert_eq!(
            length(bytes[..16].try_into().expect("prologue")),
            Some(bytes.len())
        );
    }

    fn property(name: &str, value: Value) -> Value {
        Value::Struct(vec![Value::string(name), Value::variant(value)])
    }

    /// A message as systemd sends it, made by the encoder with another type.
    fn received(kind: u8, body: &[Value]) -> Vec<u8> {
        let mut bytes = Call {
            member: "JobRemoved",
            body,
            ..STOP
        }
        .encode(9);
        bytes[1] = kind;
        bytes
    }

    #[test]
    fn the_end_of_a_job_is_read() {
        let body = [
            Value::Uint32(4),
            Value::ObjectPath("/job/4".to_owned()),
            Value::string("x.scope"),
            Value::string("done"),
        ];
        let message = Message::decode(&received(4, &body)).expect("a message");
        assert_eq!(message.removed_job(), Some(("/job/4", "done")));
        assert_eq!(message.text(), None);
        let reply = Message::decode(&received(2, &body[1..2])).expect("a message");
        assert_eq!((reply.kind, reply.text()), (Kind::Reply, Some("/job/4")));
        let answer = [Value::variant(Value::string("/user.slice"))];
        let property = Message::decode(&received(2, &answer)).expect("a message");
        assert_eq!(property.text(), Some("/user.slice"));
    }

    #[test]
    fn a_message_that_is_cut_short_or_lies_about_lengths_is_refused() {
        let whole = received(
            4,
            &[Value::Uint32(4), Value::ObjectPath("/job/4".to_owned())],
        );
        for end in 0..whole.len() {
            if let Some(message) = Message::decode(&whole[..end]) {
                assert_eq!(message.removed_job(), None);
            }
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] = 0xff;
            if let Some(message) = Message::decode(&bent) {
                let _ = (message.removed_job(), message.text());
            }
        }
        let mut huge = [0; PROLOGUE];
        huge[0] = ORDER;
        huge[4..8].fill(0xff);
        assert_eq!(length(&huge), None);
    }
}
