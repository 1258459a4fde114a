//! What the author of a SOCI index wants to be fetched first: a small JSON document beside the ztoc of a
//! layer, which lists spans by their numbers (`docs/prefetch.md` of SOCI's repository).

use std::ops::RangeInclusive;

use serde::Deserialize;

use crate::formats::Flaw;

/// Media type of the document.
pub const MEDIA_TYPE: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// Longest document that is read.
pub const MAX_LEN: u64 = 1 << 20;
/// Most ranges of spans in one.
const MAX_RANGES: usize = 10_000;

#[derive(Deserialize)]
struct Document {
    version: String,
    prefetch_spans: Vec<Spans>,
}

#[derive(Deserialize)]
struct Spans {
    start_span: u32,
    end_span: u32,
    #[serde(default)]
    priority: i64,
}

/// The ranges of spans, the most urgent first: those with the lowest number, then in their order.
pub fn parse(json: &[u8]) -> Result<Vec<RangeInclusive<u32>>, Flaw> {
    if json.len() as u64 > MAX_LEN {
        return Err(Flaw::new("prefetch artifact: too long"));
    }
    let document: Document = serde_json::from_slice(json)
        .map_err(|error| Flaw::new(format!("prefetch artifact: {error}")))?;
    if document.version != "1.0" {
        let version = document.version;
        return Err(Flaw::new(format!("prefetch artifact: version {version:?}")));
    }
    let mut spans = document.prefetch_spans;
    if spans.len() > MAX_RANGES {
        return Err(Flaw::new("prefetch artifact: too many ranges"));
    }
    spans.sort_by_key(|spans| spans.priority);
    let range = |spans: Spans| {
        let (start, end) = (spans.start_span, spans.end_span);
        if start > end {
            let reason = format!("prefetch artifact: spans {start} to {end}");
            return Err(Flaw::new(reason));
        }
        Ok(start..=end)
    };
    spans.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_in_the_order_of_their_urgency() {
        let json = br#"{"version": "1.0", "prefetch_spans": [
            {"start_span": 50, "end_span": 55, "priority": 1}, {"start_span": 10, "end_span": 10}]}"#;
        assert_eq!(parse(json).unwrap(), [10..=10, 50..=55]);
    }

    #[test]
    fn what_is_no_such_document_is_refused() {
        let many = r#"{"start_span":0,"end_span":0},"#.repeat(MAX_RANGES);
        for (json, reason) in [
            ("{", "EOF"),
            (r#"{"version":"2.0","prefetch_spans":[]}"#, "2.0"),
            (
                r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":0}]}"#,
                "-1",
            ),
            (
                r#"{"version":"1.0","prefetch_spans":[{"start_span":2,"end_span":1}]}"#,
                "2 to 1",
            ),
            (
                &format!(
                    r#"{{"version":"1.0","prefetch_spans":[{many}{}]}}"#,
                    &many[..29]
                ),
                "too many",
            ),
        ] {
            let error = parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(parse(&vec![b' '; MAX_LEN as usize + 1]).is_err());
    }
}
