//! How long our snapshotter needs from a layer's table of contents to what the kernel mounts.
//!
//! `bench-index FILES` makes the TOC of an eStargz layer with so many files and prints how many
//! milliseconds each step takes: the index of the layer, and the merged tree with its EROFS image;
//! then how many KiB of memory both need at most, the TOC not counted.

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use xebec_snapshotter::digest::Digest;
use xebec_snapshotter::erofs;
use xebec_snapshotter::formats::estargz;
use xebec_snapshotter::index::Tree;

/// Files of one directory, which is what a package's directory may hold.
const DIRECTORY: u32 = 100;
/// Packed bytes of a file.
const PACKED: u64 = 1000;

fn main() -> ExitCode {
    let files = std::env::args().nth(1).and_then(|word| word.parse().ok());
    let Some(files) = files else {
        eprintln!("bench-index FILES");
        return ExitCode::from(2);
    };
    match measure(files) {
        Ok((index, image, memory)) => {
            println!("{index} {image} {memory}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-index: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(files: u32) -> Result<(f64, f64, u64), Box<dyn Error>> {
    let json = toc(files)?;
    let (layer, toc) = (Digest::of(b"layer"), Digest::of(json.as_bytes()));
    let end = (u64::from(files) + 1) * PACKED;
    // From here on the peak is that of what is measured (proc(5), clear_refs).
    std::fs::write("/proc/self/clear_refs", "5")?;
    let before = resident("VmRSS:")?;
    let began = Instant::now();
    let index = estargz::index(json.as_bytes(), layer, toc, end + PACKED, end)?;
    let indexed = began.elapsed();
    let tree = Tree::merge(vec![Arc::new(index)])?;
    let image = erofs::image(&tree)?;
    let done = began.elapsed();
    if tree.len() < files as usize || image.is_empty() {
        return Err(format!("{} inodes, {} bytes", tree.len(), image.len()).into());
    }
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let memory = resident("VmHWM:")?.saturating_sub(before);
    Ok((ms(indexed), ms(done.saturating_sub(indexed)), memory))
}

/// A line of this process's status in KiB.
fn resident(line: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|it| it.strip_prefix(line));
    let number = found.and_then(|rest| rest.split_whitespace().next());
    Ok(number.ok_or("no such line in the status")?.parse()?)
}

/// A TOC as converters write it: every file with its size, owner, mode, time and digest.
fn toc(files: u32) -> Result<String, std::fmt::Error> {
    let mut json = String::from("{\"version\":1,\"entries\":[");
    let time = "\"modtime\":\"2023-11-14T22:13:20Z\"";
    for number in 0..files {
        let directory = number / DIRECTORY;
        if number % DIRECTORY == 0 {
            write!(
                json,
                "{{\"name\":\"usr/lib/package-{directory}/\",\"type\":\"dir\",{time},\"mode\":493}},"
            )?;
        }
        let digest = Digest::of(&number.to_le_bytes());
        write!(
            json,
            "{{\"name\":\"usr/lib/package-{directory}/module-{number}.py\",\"type\":\"reg\",\
             \"size\":3000,{time},\"mode\":420,\"offset\":{},\"digest\":\"{digest}\",\
             \"chunkDigest\":\"{digest}\"}},",
            u64::from(number) * PACKED
        )?;
    }
    json.pop();
    json.push_str("]}");
    Ok(json)
}
