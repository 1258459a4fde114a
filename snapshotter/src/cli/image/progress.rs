//! What a command shows while it works.

use std::collections::HashMap;
use std::sync::Mutex;

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::convert::{LayerReport, Observer};
use crate::digest::Digest;

/// Bars on a terminal, one line a layer elsewhere.
pub(super) struct Progress {
    bars: Option<MultiProgress>,
    by_layer: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Progress {
    pub(super) fn new(terminal: bool) -> Self {
        Self {
            bars: terminal.then(MultiProgress::new),
            by_layer: Mutex::default(),
        }
    }

    pub(super) fn clear(&self) {
        for bar in self.by_layer().values() {
            bar.finish();
        }
    }

    fn by_layer(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, ProgressBar>> {
        self.by_layer
            .lock()
            .expect("no panic while bars are changed")
    }

    fn line(&self, text: &str) {
        match &self.bars {
            // A line that cannot be drawn is not worth failing for.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}

impl Observer for Progress {
    fn planned(&self, layers: &[(Digest, u64)]) {
        let Some(bars) = &self.bars else {
            return;
        };
        let template = "{prefix} {bar:30} {bytes:>11} of {total_bytes:>11} {msg}";
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        for (layer, size) in layers {
            let bar = bars.add(ProgressBar::new(*size).with_style(style.clone()));
            bar.set_prefix(short(layer));
            self.by_layer().insert(*layer, bar);
        }
    }

    fn read(&self, layer: &Digest, bytes: u64) {
        if let Some(bar) = self.by_layer().get(layer) {
            bar.inc(bytes);
        }
    }

    fn finished(&self, layer: &Digest, result: &LayerReport) {
        let what = if result.reused { "reused" } else { "converted" };
        let sizes = format!(
            "{} -> {}",
            HumanBytes(result.source_size),
            HumanBytes(result.size)
        );
        if let Some(bar) = self.by_layer().get(layer) {
            bar.finish_with_message(format!("{what}, {}", HumanBytes(result.size)));
            return;
        }
        self.line(&format!(
            "{} {what} {} ({sizes})",
            short(layer),
            short(&result.digest)
        ));
    }

    fn note(&self, text: &str) {
        self.line(text);
    }
}

/// As many hex digits as people compare.
pub(super) fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}
