//! Answers that hold several ranges of a blob: `multipart/byteranges` (RFC 9110, section 14.6).
//!
//! The bytes of a part are told by its `Content-Range`, so that they are never searched for the
//! boundary; what lies between parts is bounded. A server may send neighbours as one part: what
//! lies between them is passed over, as long as it is little.

use std::collections::VecDeque;
use std::ops::Range;

use super::range;

/// Longest boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;
/// Most bytes from the end of one part to the first byte of the next.
const MAX_HEAD: usize = 1 << 10;
/// Most bytes between two ranges that a server may send along as one part with them.
pub const MAX_BETWEEN: u64 = 64 << 10;

/// The boundary in a `Content-Type`; none if that is no multipart of ranges.
pub fn boundary(content_type: &str) -> Option<&str> {
    let (media_type, parameters) = content_type.split_once(';')?;
    if !media_type
        .trim()
        .eq_ignore_ascii_case("multipart/byteranges")
    {
        return None;
    }
    let mut values = parameters.split(';').filter_map(|parameter| {
        let (name, value) = parameter.trim().split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then_some(value)
    });
    let value = values.next_back()?;
    let unquoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let boundary = unquoted.unwrap_or(value);
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let fits = (1..=MAX_BOUNDARY).contains(&boundary.len()) && !boundary.ends_with(' ');
    (fits && boundary.bytes().all(is_good)).then_some(boundary)
}

/// Reads one answer as it arrives.
#[derive(Debug)]
pub struct Multipart {
    /// `--` and the boundary.
    delimiter: Vec<u8>,
    /// What is still to come of the ranges that were asked for, in their order.
    wanted: VecDeque<Range<u64>>,
    size: u64,
    state: State,
    /// The line that has begun, without those before it.
    line: Vec<u8>,
    /// Bytes since the last part ended.
    head: usize,
}

#[derive(Debug)]
enum State {
    /// Before a delimiter.
    Between,
    /// Among a part's header fields; its range, if that was told.
    Fields(Option<Range<u64>>),
    /// In a part's bytes: these are to come.
    Body(Range<u64>),
    /// Behind the last delimiter.
    Over,
}

impl Multipart {
    /// An answer to a request for the ranges `wanted` of a blob of `size` bytes; none of them is
    /// empty.
    pub fn new(boundary: &str, wanted: &[Range<u64>], size: u64) -> Self {
        Self {
            delimiter: [b"--", boundary.as_bytes()].concat(),
            wanted: wanted.iter().cloned().collect(),
            size,
            state: State::Between,
            line: Vec::new(),
            head: 0,
        }
    }

    /// An answer of the bytes `part` alone, to the same request.
    pub fn single(part: Range<u64>, wanted: &[Range<u64>], size: u64) -> Result<Self, String> {
        covered(&part, wanted)?;
        Ok(Self {
            delimiter: Vec::new(),
            state: State::Body(part),
            ..Self::new("", wanted, size)
        })
    }

    /// Takes the next bytes of the answer; tells `give` which of them (by their places in `bytes`)
    /// are those that were asked for, in their order and without gap. An error is the server's
    /// fault, and says what it is.
    pub fn feed(&mut self, bytes: &[u8], mut give: impl FnMut(Range<usize>)) -> Result<(), String> {
        let mut at = 0;
        while at < bytes.len() {
            at += match &mut self.state {
                State::Body(part) => {
                    let here = part.start..part.end.min(part.start + (bytes.len() - at) as u64);
                    part.start = here.end;
                    if part.is_empty() {
                        self.state = State::Between;
                        self.head = 0;
                    }
                    self.sift(&here, |found| give(at + found.start..at + found.end));
                    (here.end - here.start) as usize
                }
                State::Between | State::Fields(_) | State::Over => self.pass(&bytes[at..])?,
            };
        }
        Ok(())
    }

    /// Whether everything has arrived. A server may hang up after that.
    pub fn is_complete(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Finds those bytes of a part that are wanted, by their places behind its beginning.
    fn sift(&mut self, part: &Range<u64>, mut give: impl FnMut(Range<usize>)) {
        while let Some(wanted) = self.wanted.front_mut() {
            let found = wanted.start.max(part.start)..wanted.end.min(part.end);
            if found.is_empty() {
                return;
            }
            give((found.start - part.start) as usize..(found.end - part.start) as usize);
            wanted.start = found.end;
            if !wanted.is_empty() {
                return;
            }
            self.wanted.pop_front();
        }
    }

    /// Takes bytes outside of parts, at most to the end of a line; how many.
    fn pass(&mut self, bytes: &[u8]) -> Result<usize, String> {
        if self.delimiter.is_empty() {
            return Err("more bytes than were told".into());
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(bytes.len(), |end| end + 1);
        self.head += taken;
        if self.head > MAX_HEAD {
            return Err(format!("more than {MAX_HEAD} bytes between two parts"));
        }
        self.line.extend_from_slice(&bytes[..taken]);
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            let line = line
                .strip_suffix(b"\r\n")
                .ok_or("a line that ends without a carriage return")?;
            self.take_line(line)?;
        }
        Ok(taken)
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), String> {
        match &mut self.state {
            State::Between => match line.strip_prefix(&*self.delimiter) {
                Some(rest) => match rest.trim_ascii_end() {
                    b"" => self.state = State::Fields(None),
                    b"--" => self.state = State::Over,
                    _ => return Err("a delimiter with something behind it".into()),
                },
                // The line break before a delimiter is part of it.
                None if line.is_empty() => {}
                None => return Err("bytes that belong to no part".into()),
            },
            State::Fields(told) if line.is_empty() => {
                let part = told.take().ok_or("a part without Content-Range")?;
                covered(&part, &self.wanted)?;
                self.state = State::Body(part);
            }
            State::Fields(told) => {
                if let Some(range) = content_range(line, self.size)?
                    && told.replace(range).is_some()
                {
                    return Err("a part with two ranges".into());
                }
            }
            // Nothing that is there counts.
            State::Body(_) | State::Over => {}
        }
        Ok(())
    }
}

/// Refuses a part that is not made of the next of the ranges `wanted`, whole, with little between.
fn covered<'a>(
    part: &Range<u64>,
    wanted: impl IntoIterator<Item = &'a Range<u64>>,
) -> Result<(), String> {
    let unwanted = || {
        let Range { start, end } = part;
        format!("bytes {start}-{}, which were not asked for", end - 1)
    };
    let (mut count, mut at) = (0, part.start);
    for next in wanted {
        if at == part.end {
            break;
        }
        let between = next.start.checked_sub(at);
        let most = if count == 0 { 0 } else { MAX_BETWEEN };
        if next.end > part.end || between.is_none_or(|between| between > most) {
            return Err(unwanted());
        }
        (count, at) = (count + 1, next.end);
    }
    if at == part.end && count > 0 {
        Ok(())
    } else {
        Err(unwanted())
    }
}

/// The range in a header field, if it is one that tells it.
fn content_range(line: &[u8], size: u64) -> Result<Option<Range<u64>>, String> {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        return Err("a header field without a colon".into());
    };
    if !line[..colon].eq_ignore_ascii_case(b"content-range") {
        return Ok(None);
    }
    let value = String::from_utf8_lossy(&line[colon + 1..]);
    range::told(value.trim(), size).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The blob whose byte at each place says where it is.
    fn byte(at: u64) -> u8 {
        (at % 251) as u8
    }

    fn part(head: &str, range: Range<u64>) -> Vec<u8> {
        let mut part = format!("\r\n--b\r\n{head}\r\n").into_bytes();
        part.extend(range.map(byte));
        part
    }

    fn ranged(range: Range<u64>) -> Vec<u8> {
        let (first, last) = (range.start, range.end - 1);
        let head = format!("Content-Type: x/y\r\nContent-Range: bytes {first}-{last}/1000000\r\n");
        part(&head, range)
    }

    fn answer(parts: &[Vec<u8>]) -> Vec<u8> {
        [&parts.concat()[2..], b"\r\n--b--\r\n"].concat()
    }

    /// What comes out of an answer that arrives in pieces of `piece` bytes.
    fn read(answer: &[u8], wanted: &[Range<u64>], piece: usize) -> Result<Vec<u8>, String> {
        let mut reader = Multipart::new("b", wanted, 1_000_000);
        let mut got = Vec::new();
        for bytes in answer.chunks(piece) {
            reader.feed(bytes, |found| got.extend_from_slice(&bytes[found]))?;
        }
        if reader.is_complete() {
            return Ok(got);
        }
        Err("not complete".into())
    }

    fn expected(wanted: &[Range<u64>]) -> Vec<u8> {
        wanted.iter().cloned().flatten().map(byte).collect()
    }

    const WANTED: [Range<u64>; 3] = [10..20, 500..501, 70_000..80_000];

    #[test]
    fn ranges_come_out_in_order_however_the_answer_is_cut() {
        let answers = [
            answer(&WANTED.map(ranged)),
            // As nginx begins.
            [b"\r\n".to_vec(), answer(&WANTED.map(ranged))].concat(),
            answer(&[ranged(10..501), ranged(70_000..80_000)]),
            [answer(&WANTED.map(ranged)), b"an epilogue".to_vec()].concat(),
        ];
        for (number, answer) in answers.iter().enumerate() {
            for piece in [1, 2, 3, 7, 100, 1 << 20] {
                let got = read(answer, &WANTED, piece);
                assert!(
                    got.as_deref() == Ok(&*expected(&WANTED)),
                    "{number}, {piece}: {:?}",
                    got.err()
                );
            }
        }
    }

    #[test]
    fn a_boundary_within_the_bytes_of_a_part_is_none() {
        let trick = b"\r\n--b--\r\n\r\n--b\r\nContent-Range: bytes 0-9/1000000\r\n\r\n";
        let wanted = 100..100 + trick.len() as u64;
        let mut told = part(
            &format!("content-range:bytes 100-{}/*\r\n", wanted.end - 1),
            0..0,
        );
        told.extend_from_slice(trick);
        let got = read(&answer(&[told]), &[wanted], 5);
        assert_eq!(got.unwrap(), trick);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        for (parts, reason) in [
            (vec![ranged(10..21)], "not asked for"),
            (vec![ranged(9..20)], "not asked for"),
            (vec![ranged(10..15)], "not asked for"),
            (vec![ranged(500..501)], "not asked for"),
            (vec![ranged(10..20), ranged(10..20)], "not asked for"),
            (vec![ranged(10..80_000)], "not asked for"),
            (
                vec![[WANTED.map(ranged).concat(), ranged(0..1)].concat()],
                "not asked for",
            ),
            (vec![ranged(10..20)], "not complete"),
            (vec![], "not complete"),
            (
                vec![part("Content-Range: bytes 10-19/999\r\n", 10..20)],
                "999",
            ),
            (
                vec![part("Content-Range: bytes 19-10/1000000\r\n", 10..20)],
                "malformed",
            ),
            (
                vec![part(
                    "Content-Range: bytes 0-18446744073709551615/*\r\n",
                    0..0,
                )],
                "malformed",
            ),
            (
                vec![part("Content-Range: bytes 10-1000000/*\r\n", 0..0)],
                "malformed",
            ),
            (
                vec![part("Content-Type: x/y\r\n", 10..20)],
                "without Content-Range",
            ),
            (
                vec![part(
                    "Content-Range: bytes 10-19/*\r\nContent-Range: bytes 10-19/*\r\n",
                    10..20,
                )],
                "two ranges",
            ),
            (vec![part("no field\r\n", 10..20)], "colon"),
            (vec![part("a: b\n", 10..20)], "carriage return"),
            (
                vec![part(&format!("a: {}\r\n", "x".repeat(MAX_HEAD)), 10..20)],
                "between two parts",
            ),
            (
                vec![part(&"a: b\r\n".repeat(MAX_HEAD / 6), 10..20)],
                "between two parts",
            ),
            (
                vec![ranged(10..20), b"more".to_vec(), ranged(500..501)],
                "no part",
            ),
            (vec![b"\r\n--bb\r\n".to_vec()], "behind it"),
        ] {
            let parts = if parts.is_empty() {
                vec![b"\r\n".to_vec()]
            } else {
                parts
            };
            let error = read(&answer(&parts), &WANTED, 11).unwrap_err();
            assert!(error.contains(reason), "{error}, not {reason}");
        }
    }

    #[test]
    fn a_single_part_is_made_of_the_next_ranges_and_ends_with_them() {
        let single = |part| Multipart::single(part, &WANTED, 1_000_000);
        assert!(single(10..19).is_err() && single(500..501).is_err() && single(0..20).is_err());
        let mut reader = single(10..501).unwrap();
        let bytes: Vec<u8> = (10..501).map(byte).collect();
        let mut got = Vec::new();
        reader
            .feed(&bytes, |found| got.extend_from_slice(&bytes[found]))
            .unwrap();
        assert!(got == expected(&WANTED[..2]) && !reader.is_complete());
        assert!(reader.feed(b"\r\n", drop).unwrap_err().contains("more"));
    }

    #[test]
    fn an_epilogue_without_end_is_cut_off() {
        let answer = [answer(&WANTED.map(ranged)), vec![b'x'; MAX_HEAD + 1]].concat();
        assert!(read(&answer, &WANTED, 100).unwrap_err().contains("between"));
    }

    #[test]
    fn a_boundary_is_found_among_parameters_and_must_be_one() {
        let of = |parameters: &str| {
            boundary(&format!("Multipart/ByteRanges{parameters}")).map(str::to_owned)
        };
        assert_eq!(of("; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(of(";a=b ; Boundary=\"a b:c\"").as_deref(), Some("a b:c"));
        for bad in [
            "",
            ";",
            "; boundary=",
            "; boundary=\"\"",
            "; boundary=\"a",
            "; boundary=a\r\nb",
            "; boundary=\"a \"",
            "; boundary=\u{e4}",
            &format!("; boundary={}", "x".repeat(71)),
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        assert_eq!(boundary("application/octet-stream; boundary=abc"), None);
    }
}
