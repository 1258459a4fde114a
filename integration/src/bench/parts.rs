//! Suites in parts: each has the host to itself, can be measured alone, and takes no other along
//! when it fails.

use clap::ValueEnum;

use super::suite::{Random, Run};
use crate::error::{Error, Result};

/// The parts of a suite, by the names that their variants have on the command line.
pub(super) trait Measurable: ValueEnum + std::fmt::Debug {
    /// What lives as long as the suite.
    type Fixtures;

    /// Measures this part.
    fn measure(self, fixtures: &Self::Fixtures, rounds: u32, random: &mut Random) -> Result<Run>;
}

/// The names of all parts.
pub(super) fn names<P: ValueEnum>() -> Vec<String> {
    let values = P::value_variants().iter().filter_map(P::to_possible_value);
    values.map(|value| value.get_name().to_owned()).collect()
}

/// Measures all parts, or the one that is named.
pub(super) fn measure<P: Measurable>(
    fixtures: &P::Fixtures,
    only: Option<&str>,
    rounds: u32,
    random: &mut Random,
) -> Result<Run> {
    let parse = |name| P::from_str(name, false).map_err(|e| Error::invalid("--part", e));
    let chosen = match only {
        Some(name) => &[parse(name)?],
        None => P::value_variants(),
    };
    let mut all = Run::default();
    for part in chosen {
        match part.clone().measure(fixtures, rounds, random) {
            Ok(run) => all.extend(run),
            Err(error) => all.fail(&format!("part {part:?}"), &error),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, ValueEnum)]
    enum Part {
        First,
        Broken,
        Last,
    }

    impl Measurable for Part {
        type Fixtures = ();

        fn measure(self, (): &(), _: u32, _: &mut Random) -> Result<Run> {
            match self {
                Self::Broken => Err(Error::invalid("x", "y")),
                _ => Ok(Run {
                    absent: [super::super::suite::Absent(format!("{self:?}"))].into(),
                    ..Run::default()
                }),
            }
        }
    }

    #[test]
    fn a_part_that_fails_is_named_and_the_others_are_measured() {
        let run = measure::<Part>(&(), None, 1, &mut Random::new(1)).unwrap();
        assert_eq!(run.absent.len(), 2);
        assert!(run.failed[0].contains("Broken"), "{:?}", run.failed);
        let one = measure::<Part>(&(), Some("last"), 1, &mut Random::new(1)).unwrap();
        assert_eq!(one.absent.len(), 1);
        assert!(measure::<Part>(&(), Some("middle"), 1, &mut Random::new(1)).is_err());
        assert_eq!(names::<Part>(), ["first", "broken", "last"]);
    }
}
