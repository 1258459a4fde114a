//! D-Bus values of the types that units' properties have, and their text form in annotations.

/// A value; the names are those of the D-Bus specification.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    Int16(i16),
    Uint16(u16),
    Int32(i32),
    Uint32(u32),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    String(String),
    ObjectPath(String),
    /// The signature of an element, and the elements.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    Variant(Box<Value>),
}

impl Value {
    pub(super) fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    pub(super) fn variant(value: Self) -> Self {
        Self::Variant(Box::new(value))
    }

    /// Bytes as systemd takes sets of processors.
    pub(super) fn bytes(bytes: &[u8]) -> Self {
        Self::Array(
            "y".to_owned(),
            bytes.iter().map(|b| Self::Byte(*b)).collect(),
        )
    }

    /// The type, as the specification writes it.
    pub(super) fn signature(&self) -> String {
        let code = match self {
            Self::Byte(_) => "y",
            Self::Bool(_) => "b",
            Self::Int16(_) => "n",
            Self::Uint16(_) => "q",
            Self::Int32(_) => "i",
            Self::Uint32(_) => "u",
            Self::Int64(_) => "x",
            Self::Uint64(_) => "t",
            Self::Double(_) => "d",
            Self::String(_) => "s",
            Self::ObjectPath(_) => "o",
            Self::Variant(_) => "v",
            Self::Array(element, _) => return format!("a{element}"),
            Self::Struct(members) => {
                let members: String = members.iter().map(Self::signature).collect();
                return format!("({members})");
            }
        };
        code.to_owned()
    }

    /// The number of seconds as microseconds; `None` for what is no number.
    fn seconds_as_microseconds(&self) -> Option<Self> {
        const SECOND: u64 = 1_000_000;
        let seconds = match self {
            Self::Byte(n) => u64::from(*n),
            Self::Uint16(n) => u64::from(*n),
            Self::Uint32(n) => u64::from(*n),
            Self::Uint64(n) => *n,
            Self::Int16(n) => u64::try_from(*n).ok()?,
            Self::Int32(n) => u64::try_from(*n).ok()?,
            Self::Int64(n) => u64::try_from(*n).ok()?,
            Self::Double(n) => return Some(Self::Uint64((n * SECOND as f64) as u64)),
            _ => return None,
        };
        seconds.checked_mul(SECOND).map(Self::Uint64)
    }
}

/// Reads an annotation `org.systemd.property.NAME`: the property's name and value.
///
/// Lengths of time are documented in seconds as `…Sec` and exist on the bus in microseconds as
/// `…USec` only; as in runc, the former is turned into the latter.
pub(super) fn parse_property(name: &str, text: &str) -> Result<(String, Value), String> {
    if name.len() < 3 || !name.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(
            "name incorrect: a property has at least three letters and nothing else".into(),
        );
    }
    let value = parse(text)?;
    match name.strip_suffix("Sec") {
        Some(stem) if stem.ends_with(|c: char| c.is_ascii_lowercase()) => {
            let value = value
                .seconds_as_microseconds()
                .ok_or_else(|| format!("{text:?} is not a number of seconds"))?;
            Ok((format!("{stem}USec"), value))
        }
        _ => Ok((name.to_owned(), value)),
    }
}

/// Parses the text form of a value (GVariant's, as `gdbus` and runc take it): `'text'`, `true`,
/// `uint64 5`, `['a', 'b']`, `@as []`.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser { rest: text };
    let value = parser.value(None)?;
    match parser.rest.trim_start() {
        "" => Ok(value),
        rest => Err(format!("unexpected {rest:?}")),
    }
}

/// Words that name the type of what follows.
const KEYWORDS: [(&str, &str); 11] = [
    ("boolean", "b"),
    ("byte", "y"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
    ("objectpath", "o"),
];

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// A value, of type `wanted` if that is known already.
    fn value(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix('@') {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let signature = &rest[..end];
            self.rest = &rest[end..];
            return self.value(Some(signature));
        }
        for (keyword, signature) in KEYWORDS {
            if let Some(rest) = self.rest.strip_prefix(keyword)
                && rest.starts_with(char::is_whitespace)
            {
                self.rest = rest;
                return self.value(Some(signature));
            }
        }
        match self.rest.chars().next() {
            Some('[') => self.array(wanted),
            Some(quote @ ('\'' | '"')) => self.string(quote, wanted),
            Some('<') => self.variant(wanted),
            Some(_) => scalar(self.word(), wanted),
            None => Err("a value is missing".to_owned()),
        }
    }

    fn array(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        let mut element = match wanted {
            Some(wanted) => {
                let element = wanted.strip_prefix('a');
                Some(
                    element
                        .ok_or_else(|| wrong_type("an array", wanted))?
                        .to_owned(),
                )
            }
            None => None,
        };
        self.rest = &self.rest[1..];
        let mut elements = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            if let Some(rest) = self.rest.strip_prefix(']') {
                self.rest = rest;
                break;
            }
            if !elements.is_empty() {
                self.rest = self
                    .rest
                    .strip_prefix(',')
                    .ok_or_else(|| "an array lacks a comma or its end".to_owned())?;
            }
            let value = self.value(element.as_deref())?;
            element.get_or_insert_with(|| value.signature());
            elements.push(value);
        }
        let element = element.ok_or("an empty array needs its type, as in \"@as []\"")?;
        match elements.iter().find(|value| value.signature() != element) {
            Some(value) => Err(wrong_type(&format!("{value:?}"), &element)),
            None => Ok(Value::Array(element, elements)),
        }
    }

    fn variant(&mut self, wanted: Option<&str>) -> Result<Value, String> {
        self.rest = &self.rest[1..];
        let value = self.value(None)?;
        self.rest = self
            .rest
            .trim_start()
            .strip_prefix('>')
            .ok_or_else(|| "a variant lacks its end".to_owned())?;
        match wanted {
            None | Some("v") => Ok(Value::variant(value)),
            Some(wanted) => Err(wrong_type("a variant", wanted)),
        }
    }

    fn string(&mut self, quote: char, wanted: Option<&str>) -> Result<Value, String> {
        let mut text = String::new();
        let mut chars = self.rest[1..].char_indices();
        loop {
            match chars.next() {
                Some((at, c)) if c == quote => {
                    self.rest = &self.rest[at + 2..];
                    break;
                }
                Some((_, '\\')) => match chars.next() {
                    Some((_, 'n')) => text.push('\n'),
                    Some((_, 't')) => text.push('\t'),
                    Some((_, c)) if !c.is_ascii_alphanumeric() => text.push(c),
                    _ => return Err("a string has an unknown escape".to_owned()),
                },
                Some((_, c)) => text.push(c),
                None => return Err("a string lacks its end".to_owned()),
            }
        }
        match wanted {
            None | Some("s") => Ok(Value::String(text)),
            Some("o") => Ok(Value::ObjectPath(text)),
            Some(wanted) => Err(wrong_type("a string", wanted)),
        }
    }

    fn word(&mut self) -> &'a str {
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ']' | '>');
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }
}

fn wrong_type(what: &str, wanted: &str) -> String {
    format!("{what} is not of type {wanted:?}")
}

/// A truth value or a number; a number without a type is an `int32`, or a `double` with a point.
fn scalar(word: &str, wanted: Option<&str>) -> Result<Value, String> {
    if let Ok(truth) = word.parse()
        && matches!(wanted, None | Some("b"))
    {
        return Ok(Value::Bool(truth));
    }
    let wanted = wanted.unwrap_or(if word.contains('.') { "d" } else { "i" });
    let value = match wanted {
        "y" => word.parse().map(Value::Byte).ok(),
        "n" => word.parse().map(Value::Int16).ok(),
        "q" => word.parse().map(Value::Uint16).ok(),
        "i" => word.parse().map(Value::Int32).ok(),
        "u" => word.parse().map(Value::Uint32).ok(),
        "x" => word.parse().map(Value::Int64).ok(),
        "t" => word.parse().map(Value::Uint64).ok(),
        "d" => word.parse().map(Value::Double).ok(),
        _ => None,
    };
    value.ok_or_else(|| wrong_type(&format!("{word:?}"), wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_read_with_and_without_types() {
        let strings = |list: &[&str]| {
            let strings = list.iter().map(|text| Value::string(*text)).collect();
            Value::Array("s".to_owned(), strings)
        };
        let table = [
            ("true", Value::Bool(true)),
            ("7", Value::Int32(7)),
            ("1.5", Value::Double(1.5)),
            ("uint64 7", Value::Uint64(7)),
            ("@t 7", Value::Uint64(7)),
            (" byte 0 ", Value::Byte(0)),
            ("'inactive-or-failed'", Value::string("inactive-or-failed")),
            (r#""it's \"it\"""#, Value::string("it's \"it\"")),
            ("['a', 'b']", strings(&["a", "b"])),
            ("@as []", strings(&[])),
            (
                "[uint32 1, 2]",
                Value::Array("u".to_owned(), vec![Value::Uint32(1), Value::Uint32(2)]),
            ),
            ("<5>", Value::variant(Value::Int32(5))),
        ];
        for (text, value) in table {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in [
            "",
            "[]",
            "'open",
            "['a'",
            "['a' 'b']",
            "['a', 1]",
            "uint64 -1",
            "byte 256",
            "maybe",
            "1 2",
            "boolean 7",
            "@s 1",
            r"'\x'",
            "<1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds_under_another_name() {
        let table = [
            (
                "TimeoutStopSec",
                "uint64 5",
                ("TimeoutStopUSec", Value::Uint64(5_000_000)),
            ),
            (
                "TimeoutStopSec",
                "1.5",
                ("TimeoutStopUSec", Value::Uint64(1_500_000)),
            ),
            (
                "TimeoutStopUSec",
                "uint64 5",
                ("TimeoutStopUSec", Value::Uint64(5)),
            ),
            (
                "CollectMode",
                "'inactive'",
                ("CollectMode", Value::string("inactive")),
            ),
        ];
        for (name, text, (expected, value)) in table {
            assert_eq!(parse_property(name, text), Ok((expected.to_owned(), value)));
        }
        for (name, text) in [
            ("ab", "1"),
            ("A_b", "1"),
            ("TimeoutStopSec", "'x'"),
            ("TimeoutStopSec", "-1"),
        ] {
            assert!(parse_property(name, text).is_err(), "{name}={text}");
        }
    }
}
