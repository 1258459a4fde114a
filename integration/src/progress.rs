//! Progress on standard error: a spinner where there is a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step of work that is being shown.
#[derive(Debug)]
pub struct Step {
    bar: Option<ProgressBar>,
    title: String,
    begun: Instant,
}

impl Step {
    /// Announces the step.
    pub fn begin(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            eprintln!("... {title}");
            None
        };
        Self {
            bar,
            title,
            begun: Instant::now(),
        }
    }

    /// Says what is happening right now; terminals only.
    pub fn detail(&self, text: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.into());
        }
    }

    /// Says that the step is done, with its result in a few words.
    pub fn done(self, result: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        eprintln!("ok  {} ({seconds:.1} s) {result}", self.title);
    }
}
