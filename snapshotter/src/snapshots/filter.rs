//! containerd's filter language: `field[.field…][op value]`, joined by commas.
//!
//! Operators are `==`, `!=` and `~=` (regular expression); without one, presence is asked for.
//! Fields and values may be quoted as Go strings, regular expressions also with `/` or `|`.
//! Several filters match when any of them does; no filter matches everything.

use std::fmt;

use regex_automata::nfa::thompson::pikevm::PikeVM;

use super::record::Record;
use crate::error::{Error, Result};

/// A parsed list of filters.
#[derive(Debug)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Box<PikeVM>),
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present => f.write_str("Present"),
            Self::Equal(value) => write!(f, "Equal({value:?})"),
            Self::NotEqual(value) => write!(f, "NotEqual({value:?})"),
            Self::Matches(_) => f.write_str("Matches(..)"),
        }
    }
}

impl Filters {
    /// Parses the filters of a request.
    pub fn parse(filters: &[String]) -> Result<Self> {
        filters
            .iter()
            .map(|text| {
                Parser { text, at: 0 }.selectors().map_err(|(at, why)| {
                    Error::InvalidArgument(format!("filter {text:?}, byte {at}: {why}"))
                })
            })
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Whether the snapshot `name` with `record` is asked for.
    pub fn matches(&self, name: &str, record: &Record) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(name, record)))
    }
}

impl Selector {
    fn matches(&self, name: &str, record: &Record) -> bool {
        let value = field(&self.path, name, record);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(expected) => value == Some(expected),
            Test::NotEqual(expected) => value.unwrap_or_default() != expected,
            Test::Matches(regex) => {
                regex.is_match(&mut regex.create_cache(), value.unwrap_or_default())
            }
        }
    }
}

fn field<'a>(path: &[String], name: &'a str, record: &'a Record) -> Option<&'a str> {
    match path.first()?.as_str() {
        "name" => Some(name),
        "parent" => Some(record.parent.as_deref().unwrap_or_default()),
        "kind" => Some(record.kind.as_str()),
        // Dots of an unquoted label name are read as separators, so they are put back.
        "labels" => record.labels.get(&path[1..].join(".")).map(String::as_str),
        _ => None,
    }
}

/// Byte position and reason.
type Failure = (usize, String);

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn selectors(mut self) -> Result<Vec<Selector>, Failure> {
        let mut all = Vec::new();
        if self.text.is_empty() {
            return Ok(all);
        }
        loop {
            all.push(self.selector()?);
            match self.peek() {
                None => return Ok(all),
                Some(',') => self.at += 1,
                Some(other) => return self.fail(format!("unexpected {other:?}")),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, Failure> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        let test = match self.rest().get(..2) {
            Some("==") => Test::Equal(self.value("\"'")?),
            Some("!=") => Test::NotEqual(self.value("\"'")?),
            Some("~=") => {
                let pattern = self.value("\"'/|")?;
                let regex = PikeVM::new(&pattern).or_else(|e| self.fail(e.to_string()))?;
                Test::Matches(Box::new(regex))
            }
            _ if matches!(self.peek(), None | Some(',')) => Test::Present,
            _ => return self.fail("expected ==, != or ~=".into()),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, Failure> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return self.quoted();
        }
        let field = self.take_while(|c| c.is_ascii_alphanumeric() || c == '_');
        if field.is_empty() {
            self.fail("expected a field".into())
        } else {
            Ok(field)
        }
    }

    /// Consumes the two bytes of the operator, then the value.
    fn value(&mut self, quotes: &str) -> Result<String, Failure> {
        self.at += 2;
        if self.peek().is_some_and(|c| quotes.contains(c)) {
            return self.quoted();
        }
        let value = self.take_while(|c| c != ',' && !c.is_whitespace());
        if value.is_empty() {
            self.fail("expected a value".into())
        } else {
            Ok(value)
        }
    }

    fn quoted(&mut self) -> Result<String, Failure> {
        let quote = self.next()?;
        let mut out = String::new();
        loop {
            match self.next()? {
                c if c == quote => return Ok(out),
                '\\' => {
                    // Inside /…/ and |…| a backslash belongs to the expression.
                    if matches!(quote, '/' | '|') {
                        let c = self.next()?;
                        if c != quote {
                            out.push('\\');
                        }
                        out.push(c);
                    } else {
                        out.push(self.escaped()?);
                    }
                }
                c => out.push(c),
            }
        }
    }

    /// The character of a Go escape sequence, after its backslash.
    fn escaped(&mut self) -> Result<char, Failure> {
        let digits = match self.next()? {
            'a' => return Ok('\x07'),
            'b' => return Ok('\x08'),
            'f' => return Ok('\x0c'),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'v' => return Ok('\x0b'),
            c @ ('\\' | '\'' | '"') => return Ok(c),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return self.fail(format!("unknown escape \\{other}")),
        };
        let code = self
            .rest()
            .get(..digits)
            .and_then(|hex| u32::from_str_radix(hex, 16).ok());
        match code.and_then(char::from_u32) {
            Some(c) => {
                self.at += digits;
                Ok(c)
            }
            None => self.fail("bad escape".into()),
        }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> String {
        let rest = self.rest();
        let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        let taken = rest[..end].to_owned();
        self.at += end;
        taken
    }

    fn next(&mut self) -> Result<char, Failure> {
        match self.peek() {
            Some(c) => {
                self.at += c.len_utf8();
                Ok(c)
            }
            None => self.fail("unexpected end".into()),
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn fail<T>(&self, why: String) -> Result<T, Failure> {
        Err((self.at, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::record::{Kind, SnapshotId, Timestamp};

    fn record() -> Record {
        let labels = [
            ("containerd.io/snapshot.ref", "sha256:abc"),
            ("foo", "bar"),
            ("a.b", "c,d"),
        ];
        let labels = labels
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let now = Timestamp {
            seconds: 1,
            nanos: 0,
        };
        Record::new(
            SnapshotId(1),
            Kind::Committed,
            Some("k8s.io/1/base"),
            labels,
            now,
        )
    }

    fn matches(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        Filters::parse(&filters)
            .unwrap()
            .matches("default/2/sha256:abc", &record())
    }

    #[test]
    fn one_filter_selects_by_field_operator_and_value() {
        let cases = [
            ("", true),
            ("name==default/2/sha256:abc", true),
            ("name==other", false),
            ("name!=other", true),
            ("kind==committed", true),
            ("kind!=committed", false),
            ("kind==active", false),
            (r#"parent=="k8s.io/1/base""#, true),
            (r#"parent=="""#, false),
            ("parent", true),
            ("labels.foo", true),
            ("labels.foo==bar", true),
            ("labels.foo!=bar", false),
            ("labels.absent", false),
            ("labels.absent!=x", true),
            (r#"labels."containerd.io/snapshot.ref"==sha256:abc"#, true),
            (r"labels.'containerd.io/snapshot.ref'=='sha256:abc'", true),
            (r#"labels.a.b=="c,d""#, true),
            (r#"labels."a.b"=="\x63,\u0064""#, true),
            ("labels", false),
            ("nosuchfield", false),
            ("nosuchfield!=x", true),
            ("name~=sha256", true),
            (r"name~=/^default\/\d+\//", true),
            ("name~=|^k8s|", false),
            (r#"name~="^default/""#, true),
            ("kind==committed,labels.foo==bar", true),
            ("kind==committed,labels.foo==baz", false),
        ];
        for (filter, expected) in cases {
            assert_eq!(matches(&[filter]), expected, "{filter}");
        }
    }

    #[test]
    fn containerds_own_question_for_a_remote_snapshot_is_understood() {
        let question = r#"labels."containerd.io/snapshot.ref"==sha256:abc,parent=="k8s.io/1/base""#;
        assert!(matches(&[question]));
    }

    #[test]
    fn several_filters_match_when_any_does_and_none_match_all() {
        assert!(matches(&[]));
        assert!(matches(&["kind==active", "labels.foo"]));
        assert!(!matches(&["kind==active", "kind==view"]));
    }

    #[test]
    fn what_is_not_a_filter_is_refused_with_its_place() {
        let bad = [
            "==x",
            "name==",
            "name=x",
            "name== x",
            ",",
            "name==a,",
            "labels.",
            "name=='open",
            r#"name=="\q""#,
            r#"name=="\x6""#,
            r#"name=="\ud800""#,
            "name~=(",
            "name==a b",
            "näme",
        ];
        for filter in bad {
            let error = Filters::parse(&[filter.to_owned()]).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{filter}");
            assert!(error.to_string().contains("byte "), "{error}");
        }
    }
}
