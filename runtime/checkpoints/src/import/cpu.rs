//! What a processor can do, in the words of `/proc/cpuinfo`: a process that has chosen its routines
//! by that dies where it is not true any more.

use std::collections::BTreeSet;

/// Prefixes of the features that programs choose instructions by; the rest is the kernel's business.
const INSTRUCTIONS: [&str; 25] = [
    "sse",
    "ssse3",
    "avx",
    "aes",
    "vaes",
    "pclmulqdq",
    "vpclmulqdq",
    "popcnt",
    "bmi",
    "fma",
    "f16c",
    "movbe",
    "rdrand",
    "rdseed",
    "adx",
    "sha_ni",
    "lzcnt",
    "abm",
    "gfni",
    "amx",
    "erms",
    "fsrm",
    "cx16",
    "xsave",
    "rtm",
];

/// The features of a processor that programs choose by, from the text of `/proc/cpuinfo`.
pub fn processor_features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        line.strip_prefix("flags")
            .or_else(|| line.strip_prefix("Features"))
    });
    let words = line.and_then(|line| line.split_once(':'));
    let words = words.map_or("", |(_, words)| words).split_whitespace();
    let matter = words.filter(|word| INSTRUCTIONS.iter().any(|known| word.starts_with(known)));
    let all: BTreeSet<&str> = matter.collect();
    all.into_iter().map(str::to_owned).collect()
}

/// The features that were there and are not here.
pub(super) fn missing_features<'a>(then: &'a [String], here: &[String]) -> Vec<&'a str> {
    let missing = then.iter().filter(|feature| !here.contains(feature));
    missing.map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lesser_processor_is_told_by_what_it_lacks() {
        let features = |flags: &str| processor_features(&format!("model: x\nflags\t\t: {flags}\n"));
        let then = features("fpu vme sse2 avx2 avx512f md_clear");
        assert_eq!(then, ["avx2", "avx512f", "sse2"]);
        let here = features("sse2 avx2 smep");
        assert_eq!(missing_features(&then, &here), ["avx512f"]);
        assert!(missing_features(&here, &then).is_empty());
    }
}
