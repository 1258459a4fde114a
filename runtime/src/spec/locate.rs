//! From a place in a JSON text to the path of the field there.

use std::fmt::Write as _;

/// Path such as `linux.namespaces[2].type` of the value at `line` and `column` (both from 1, as
/// serde_json counts them); empty text for the document itself.
pub(super) fn field_at(text: &[u8], line: usize, column: usize) -> String {
    let start: usize = text
        .split_inclusive(|&b| b == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let end = (start + column).min(text.len());
    let mut open: Vec<Level> = Vec::new();
    let mut at = 0;
    while at < end {
        match text[at] {
            b'{' => open.push(Level::Object {
                key: String::new(),
                expects_key: true,
            }),
            b'[' => open.push(Level::Array { index: 0 }),
            // The bracket that ends the text up to the error belongs to the value in question.
            b'}' | b']' if at + 1 < end => drop(open.pop()),
            b',' if at + 1 < end => match open.last_mut() {
                Some(Level::Object { expects_key, .. }) => *expects_key = true,
                Some(Level::Array { index }) => *index += 1,
                None => {}
            },
            b'"' => {
                let close = end_of_string(text, at + 1);
                if let Some(Level::Object {
                    key,
                    expects_key: expects_key @ true,
                }) = open.last_mut()
                {
                    let name = &text[at + 1..close.min(text.len())];
                    *key = String::from_utf8_lossy(name).into_owned();
                    *expects_key = false;
                }
                at = close;
            }
            _ => {}
        }
        at += 1;
    }
    render(&open)
}

enum Level {
    Object { key: String, expects_key: bool },
    Array { index: usize },
}

fn end_of_string(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at
}

fn render(levels: &[Level]) -> String {
    let mut path = String::new();
    for level in levels {
        match level {
            Level::Object { key, .. } if key.is_empty() => {}
            Level::Object { key, .. } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Level::Array { index } => {
                // Writing to a String cannot fail.
                let _ = write!(path, "[{index}]");
            }
        }
    }
    if path.is_empty() {
        "document".to_owned()
    } else {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_by_their_path() {
        let text = br#"{"a":{"b":[1,{"c\"d":"x, {y"},"z"]},"e":7}"#;
        let place = |needle: &str| {
            let text = String::from_utf8_lossy(text);
            text.find(needle).expect("needle is in the text") + needle.len()
        };
        for (needle, path) in [
            ("[1", "a.b[0]"),
            ("x, {y\"", "a.b[1].c\\\"d"),
            ("\"z\"", "a.b[2]"),
            (":7", "e"),
        ] {
            assert_eq!(field_at(text, 1, place(needle)), path, "{needle}");
        }
    }

    #[test]
    fn places_outside_the_text_do_no_harm() {
        assert_eq!(field_at(b"", 9, 9), "document");
        assert_eq!(field_at(b"{\"a", 1, 99), "a");
    }
}
