//! Parsers against mutated input: no panic, no hang, no memory beyond a limit, and what is accepted
//! holds together.
//!
//! A target is a function over bytes and a directory `corpus/NAME` of inputs that were interesting
//! once; all of those run first, then mutations of them for `XEBEC_FUZZ_SECONDS` (2 unless set, and
//! what `make fuzz` says). The same `XEBEC_FUZZ_SEED` gives the same mutations. An input that fails
//! is written to `target/tmp/fuzz` and named; put into the corpus, it stays a test for ever.
//!
//! To add a target: a module beside the others with `#[test] fn NAME() { harness::run(…) }`.

mod beside;
mod estargz;
mod harness;
mod index;
mod manifest;
mod multipart;
mod nydus;
mod ordinary;
mod zstdchunked;
