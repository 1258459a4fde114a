//! Many generated files: small, middling and big ones, half of each compressible.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};

/// At scale 1.0.
const SMALL_FILES: f64 = 60_000.0;
const MIDDLING_FILES: f64 = 300.0;
const MIDDLING_SIZE: usize = 1 << 20;
const BIG_SIZE: f64 = 160.0 * 1024.0 * 1024.0;

/// Fills `root`/data; the same bytes every time.
pub(super) fn fill(root: &Path, scale: f64) -> Result<()> {
    let mut random = Random(1);
    let words: Vec<Vec<u8>> = (0..4096).map(|_| word(&mut random)).collect();
    let data = root.join("data");
    let write = |path: &Path, bytes: Vec<u8>| {
        let parent = path.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        fs::write(path, bytes).map_err(Error::file("write", path))
    };
    for number in 0..(SMALL_FILES * scale) as usize {
        // Pareto with exponent 1.1: most files are small, a few are not.
        let size = (700.0 * random.unit().powf(-1.0 / 1.1)).min(200_000.0) as usize;
        let directory = data.join(format!("{:02}/{:02}", number % 100, number / 100 % 20));
        write(
            &directory.join(format!("f{number:05}.txt")),
            text(&mut random, &words, size),
        )?;
    }
    for number in 0..(MIDDLING_FILES * scale) as usize {
        let bytes = text(&mut random, &words, MIDDLING_SIZE);
        write(&data.join(format!("mid{number:03}.bin")), bytes)?;
    }
    for number in 0..2 {
        let bytes = text(&mut random, &words, (BIG_SIZE * scale) as usize);
        write(&data.join(format!("big{number}.bin")), bytes)?;
    }
    Ok(())
}

fn word(random: &mut Random) -> Vec<u8> {
    let length = 6 + random.next() as usize % 13;
    (0..length)
        .map(|_| b'a' + (random.next() % 26) as u8)
        .collect()
}

/// `size` bytes: first words, then noise.
fn text(random: &mut Random, words: &[Vec<u8>], size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 32);
    while bytes.len() < size / 2 {
        bytes.extend_from_slice(&words[random.next() as usize % words.len()]);
        bytes.push(b' ');
    }
    bytes.truncate(size / 2);
    while bytes.len() < size {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1].
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_come_out_every_time() {
        let [first, second] = [(); 2].map(|()| {
            let root = tempfile::tempdir().unwrap();
            fill(root.path(), 0.001).unwrap();
            let tree = crate::corpus::tree::walk(root.path()).unwrap();
            let files = tree.iter().filter(|(_, metadata)| metadata.is_file());
            files
                .map(|(path, _)| fs::read(root.path().join(path)).unwrap())
                .collect::<Vec<_>>()
        });
        assert_eq!(first.len(), 62);
        assert_eq!(first, second);
    }
}
