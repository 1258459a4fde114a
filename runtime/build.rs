//! Links the command at a fixed address.
//!
//! A static program that can be loaded anywhere begins by correcting some 16 000 pointers in
//! itself: 90 pages that have to be copied, a third of what `state` takes in all, and 400 KiB of
//! what the kernel counts as ours. Stack, heap and mappings are placed at random all the same.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        for argument in ["-static", "-no-pie"] {
            println!("cargo::rustc-link-arg-bin=xebec={argument}");
        }
    }
}
