//! POSIX extended regular expressions, as the C library has them.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr;

/// A compiled expression.
pub(crate) struct Regex(libc::regex_t);

impl Regex {
    /// None when `pattern` is no extended regular expression.
    pub(crate) fn new(pattern: &CStr) -> Option<Self> {
        let mut compiled = MaybeUninit::uninit();
        let flags = libc::REG_EXTENDED | libc::REG_NOSUB;
        // SAFETY: `compiled` has room for the result, `pattern` is a C string.
        let failed = unsafe { libc::regcomp(compiled.as_mut_ptr(), pattern.as_ptr(), flags) };
        // SAFETY: regcomp has filled it in when it returns 0.
        (failed == 0).then(|| Self(unsafe { compiled.assume_init() }))
    }

    /// Whether some part of `text` matches.
    pub(crate) fn matches(&self, text: &CStr) -> bool {
        // SAFETY: the expression was compiled by regcomp and is freed only by drop; with
        // REG_NOSUB no place for matches is needed.
        unsafe { libc::regexec(&raw const self.0, text.as_ptr(), 0, ptr::null_mut(), 0) == 0 }
    }
}

impl Drop for Regex {
    fn drop(&mut self) {
        // SAFETY: compiled by regcomp, and used by nobody after this.
        unsafe { libc::regfree(&raw mut self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_match_anywhere_unless_they_are_anchored() {
        let matches = |pattern, text| Regex::new(pattern).map(|regex| regex.matches(text));
        assert_eq!(matches(c"b", c"abc"), Some(true));
        assert_eq!(matches(c"^b", c"abc"), Some(false));
        assert_eq!(matches(c"^web-(1|2)$", c"web-2"), Some(true));
        assert_eq!(matches(c"^web-(1|2)$", c"web-22"), Some(false));
        assert_eq!(matches(c"(", c"abc"), None);
    }
}
