//! `regex-lite` in the place of `regex`.
//!
//! oci-spec checks the CPU lists of `execCPUAffinity` with a regular expression, and for that the
//! regex crate with its Unicode tables was half of what every start of `xebec` had to relocate.

pub use regex_lite::*;
