//! Links the command at a fixed address, and what a container's start needs of it side by side.
//!
//! A static program that can be loaded anywhere begins by correcting some 16 000 pointers in
//! itself: 90 pages that have to be copied, a third of what `state` takes in all, and 400 KiB of
//! what the kernel counts as ours. Stack, heap and mappings are placed at random all the same.
//!
//! The kernel maps 64 KiB of the file for each page that is touched first. `order.txt` (by `make
//! order`) names the functions that a container's life goes through; scattered over the 5 MiB of all,
//! they make 3.3 MiB of what is counted as ours. A script for the linker lays Rust's side by side, by
//! their names without the hashes at their ends, which change with each way of building; a list those
//! of C. A name that is out of date does no harm and no good.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

const ORDER: &str = "order.txt";
const SCRIPT: &str = "order.ld";
const LIST: &str = "order-of-c.txt";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ORDER}");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if !features.split(',').any(|feature| feature == "crt-static") {
        return Ok(());
    }
    for argument in ["-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bin=xebec={argument}");
    }
    if links_by_lld() && env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let order = fs::read_to_string(ORDER)?;
        let (rust, c): (Vec<_>, Vec<_>) = order.lines().partition(|name| is_rust(name));
        let directory = env::var("OUT_DIR")?;
        let [script, list] = [SCRIPT, LIST].map(|name| Path::new(&directory).join(name));
        fs::write(&script, script_of(&rust))?;
        fs::write(&list, c.join("\n"))?;
        for argument in [
            format!("-T,{}", script.display()),
            format!("--symbol-ordering-file={}", list.display()),
            "--no-warn-symbol-ordering".to_owned(),
        ] {
            println!("cargo::rustc-link-arg-bin=xebec=-Wl,{argument}");
        }
    }
    Ok(())
}

fn is_rust(name: &str) -> bool {
    name.starts_with("_ZN") || name.starts_with("_R")
}

/// What the linker is told of functions that have sections of their own, as Rust's have: these first,
/// in their order, and all else as ever.
fn script_of(names: &[&str]) -> String {
    let sections = names.iter().map(|name| {
        let hash = if name.starts_with("_ZN") {
            "17h????????????????E"
        } else {
            ""
        };
        format!("*(\".text.{name}{hash}\" \".text.unlikely.{name}{hash}\")\n")
    });
    let sections: String = sections.collect();
    format!("SECTIONS {{ .text.hot : {{\n{sections}}} }} INSERT BEFORE .text;\n")
}

/// Whether the linker is the one that rustc brings along, with which this is tried.
fn links_by_lld() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu")
        && env::var_os("RUSTC_LINKER").is_none()
        && !["linker", "fuse-ld"]
            .iter()
            .any(|word| flags.contains(word))
}
