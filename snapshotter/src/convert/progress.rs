//! How a conversion tells what it is doing.

use crate::digest::Digest;

/// Hears of the progress of a conversion, from several threads at once.
pub trait Observer: Send + Sync {
    /// The layers of all chosen images are known; each is named by its digest in the source.
    fn planned(&self, layers: &[(Digest, u64)]) {
        let _ = layers;
    }

    /// Further `bytes` of a source layer have been read.
    fn read(&self, layer: &Digest, bytes: u64);

    /// A layer is in the destination.
    fn finished(&self, layer: &Digest, result: &super::LayerReport);

    /// Something was left out or done differently than one might expect.
    fn note(&self, text: &str);
}
