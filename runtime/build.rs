//! Links the command at a fixed address, and what a container's start needs of it side by side.
//!
//! A static program that can be loaded anywhere begins by correcting some 16 000 pointers in
//! itself: 90 pages that have to be copied, a third of what `state` takes in all, and 400 KiB of
//! what the kernel counts as ours. Stack, heap and mappings are placed at random all the same.
//!
//! The kernel maps 64 KiB of the file for each page that is touched first. `order.txt` (by `make
//! order`) names the 800 KiB of functions that a container's life goes through; scattered over the
//! 5 MiB of all, they make 3.3 MiB of what is counted as ours. A name that is out of date, or is of
//! another compiler's making, does no harm and no good.

use std::env;

const ORDER: &str = "order.txt";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ORDER}");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !features.split(',').any(|feature| feature == "crt-static") {
        return;
    }
    for argument in ["-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bin=xebec={argument}");
    }
    if links_by_lld() && env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        for argument in [
            format!("--symbol-ordering-file={directory}/{ORDER}"),
            "--no-warn-symbol-ordering".to_owned(),
        ] {
            println!("cargo::rustc-link-arg-bin=xebec=-Wl,{argument}");
        }
    }
}

/// Whether the linker is the one that rustc brings along, which alone knows how to order.
fn links_by_lld() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu")
        && env::var_os("RUSTC_LINKER").is_none()
        && !["linker", "fuse-ld"]
            .iter()
            .any(|word| flags.contains(word))
}
