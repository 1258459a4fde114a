//! Order statistics of one cell (an operation as one contestant performs it).

use serde::{Deserialize, Serialize};

/// What is reported of a cell's samples; the unit is the row's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The tenth percentile: what the machine does when nothing else disturbs it.
    pub p10: f64,
    /// The median.
    pub median: f64,
    /// The ninetieth percentile.
    pub p90: f64,
    /// How many samples there are.
    pub samples: usize,
}

impl Summary {
    /// Summarises samples in any order; `None` when there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        if samples.is_empty() {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            p10: quantile(&sorted, 0.1),
            median: quantile(&sorted, 0.5),
            p90: quantile(&sorted, 0.9),
            samples: sorted.len(),
        })
    }

    /// The width of the middle four fifths of the samples.
    pub fn spread(&self) -> f64 {
        self.p90 - self.p10
    }
}

/// Linear interpolation between the two nearest ranks of a sorted, non-empty slice.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = position.floor();
    let (low, high) = (sorted[below as usize], sorted[position.ceil() as usize]);
    low + (high - low) * (position - below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_samples_have_no_summary() {
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn one_sample_is_every_quantile_of_itself() {
        let s = Summary::of(&[4.0]).unwrap();
        assert_eq!((s.p10, s.median, s.p90, s.samples), (4.0, 4.0, 4.0, 1));
        assert!(s.spread().abs() < f64::EPSILON);
    }

    #[test]
    fn quantiles_do_not_depend_on_the_order_of_samples() {
        let s = Summary::of(&[10.0, 0.0, 5.0, 2.5, 7.5]).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(
            close(s.p10, 1.0) && close(s.median, 5.0) && close(s.p90, 9.0),
            "{s:?}"
        );
        assert!(close(s.spread(), 8.0));
    }
}
