//! A start as lines of text.

use std::fmt::Write as _;

use super::{Event, Start, What};

/// One line an event.
pub fn list(start: &Start) -> String {
    let mut out = String::new();
    let Start {
        image,
        top,
        open,
        dropped,
        ..
    } = start;
    let state = if *open { ", goes on" } else { "" };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{image} (top layer {top}){state}");
    let _ = writeln!(out, "{:>10}  {:>10}", "at", "took");
    for event in &start.events {
        let (at, took) = (milliseconds(event.at), milliseconds(event.took));
        let _ = writeln!(out, "{at:>7.1} ms  {took:>7.1} ms  {}", describe(event));
    }
    if *dropped > 0 {
        let _ = writeln!(out, "{dropped} more events");
    }
    out
}

pub(super) fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

/// What happened, in a few words.
pub(super) fn describe(event: &Event) -> String {
    match &event.what {
        What::Resolve => "resolve: the manifest".to_owned(),
        What::Open { layer } => format!("open: layer {}", short(&layer.hex())),
        What::Prepare { layer } => format!("prepare: layer {}", short(&layer.hex())),
        What::Profile { reads: None } => "profile: none in the registry".to_owned(),
        What::Profile { reads: Some(reads) } => format!("profile: {reads} reads"),
        What::Mount { by } => format!("mount: by {by}"),
        What::Fetch {
            layer,
            cause,
            offset,
            bytes,
        } => format!(
            "fetch for {cause}: {bytes} bytes at {offset} of layer {}",
            short(&layer.hex())
        ),
        What::Wait {
            layer, file, bytes, ..
        } => format!("wait: {bytes} bytes of {}", named(file, &layer.hex())),
    }
}

fn named(file: &str, layer: &str) -> String {
    match file {
        "" => format!("a file of layer {}", short(layer)),
        file => file.to_owned(),
    }
}

fn short(hex: &str) -> &str {
    hex.get(..12).unwrap_or(hex)
}
