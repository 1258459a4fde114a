//! Runs a target over its corpus and over mutations of it.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

/// Address space of the whole test program: a parser that asks for more fails to get it, and
/// aborts.
const MEMORY: u64 = 8 << 30;
/// No input of the sizes here takes a parser a fraction of this, on whatever machine.
const HANG: Duration = Duration::from_mins(1);
/// Mutated inputs do not grow beyond this.
const MAX_INPUT: usize = 1 << 20;

/// Runs `target` on what is in `corpus/NAME` and on `more` seeds, and on mutations of them all.
pub(crate) fn run(name: &str, more: Vec<Vec<u8>>, target: impl Fn(&[u8])) {
    let limit = Rlimit {
        current: Some(MEMORY),
        maximum: Some(MEMORY),
    };
    setrlimit(Resource::As, limit).expect("the memory limit can be set");
    let seeds = seeds(name, more);
    for seed in &seeds {
        run_one(name, seed, &target);
    }
    let setting = |key, default| {
        let given = std::env::var(key).ok();
        given.map_or(default, |text: String| text.parse().expect(key))
    };
    let duration = Duration::from_secs(setting("XEBEC_FUZZ_SECONDS", 2));
    let number = setting("XEBEC_FUZZ_SEED", 1);
    let mut random = Random::new(number);
    let (begun, mut runs) = (Instant::now(), 0_u64);
    while begun.elapsed() < duration {
        let input = mutate(&seeds, &mut random);
        run_one(name, &input, &target);
        runs += 1;
    }
    println!(
        "{name}: {runs} inputs from {} seeds, seed {number}",
        seeds.len()
    );
}

fn seeds(name: &str, mut seeds: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    // A target may do with seeds from elsewhere.
    if let Ok(entries) = fs::read_dir(&corpus) {
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        seeds.extend(paths.into_iter().map(|path| fs::read(path).unwrap()));
    }
    assert!(!seeds.is_empty(), "no seeds in {}", corpus.display());
    seeds
}

fn run_one(name: &str, input: &[u8], target: impl Fn(&[u8])) {
    // An abort cannot be caught: with this, the last file written is the input that did it.
    if std::env::var_os("XEBEC_FUZZ_TRACE").is_some() {
        keep(name, "last", input);
    }
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    if let Err(panic) = outcome {
        let path = keep(name, &hash(input), input);
        eprintln!("{name}: failed on {}", path.display());
        resume_unwind(panic);
    }
    if begun.elapsed() > HANG {
        let path = keep(name, &hash(input), input);
        panic!("{name}: {:?} for {}", begun.elapsed(), path.display());
    }
}

/// A name for an input, the same for the same bytes.
fn hash(input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn keep(name: &str, what: &str, input: &[u8]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("{name}-{what}"));
    fs::write(&path, input).unwrap();
    path
}

/// Numbers that parsers stumble over.
const NUMBERS: [u64; 12] = [
    0,
    1,
    7,
    255,
    4096,
    65_535,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];
/// Texts that mean something to parsers of JSON and of paths.
const TEXTS: [&str; 14] = [
    "{", "}", "[", "]", "\"", ":", ",", "-", "..", "/", "\\u0000", "null", "1e9", ".wh.",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        step(&mut input, seeds, random);
    }
    input.truncate(MAX_INPUT);
    input
}

fn step(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(64)).min(input.len());
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next() as u8,
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        4 => {
            let text = TEXTS[random.below(TEXTS.len())];
            input.splice(at..at, text.bytes());
        }
        5 => write_number(input, at, random),
        6 => replace_digits(input, at, random),
        7 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let to = (from + random.below(512)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ if random.below(8) == 0 => input.truncate(at),
        _ => {}
    }
}

/// Overwrites a binary integer.
fn write_number(input: &mut [u8], at: usize, random: &mut Random) {
    let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
    let len = [1, 2, 4, 8][random.below(4)].min(input.len() - at);
    input[at..at + len].copy_from_slice(&number[..len]);
}

/// Replaces the next decimal number.
fn replace_digits(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = input[at..].iter().position(is_digit).map(|i| at + i) else {
        return;
    };
    let len = input[start..].iter().take_while(|b| is_digit(b)).count();
    let number = NUMBERS[random.below(NUMBERS.len())].to_string();
    input.splice(start..start + len, number.bytes());
}

/// xorshift64*: small, and the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn a_target_that_fails_leaves_its_input() {
    let target = |bytes: &[u8]| assert!(!bytes.contains(&b'7'), "a seven");
    let seeds = vec![b"123456".to_vec()];
    let failed = catch_unwind(AssertUnwindSafe(|| run("selftest", seeds, target)));
    assert!(failed.is_err(), "no mutation had a seven");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let kept = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let kept: Vec<_> = kept
        .filter(|path| path.to_string_lossy().contains("/selftest-"))
        .collect();
    assert!(!kept.is_empty());
    for path in kept {
        assert!(fs::read(&path).unwrap().contains(&b'7'));
        fs::remove_file(path).unwrap();
    }
}
