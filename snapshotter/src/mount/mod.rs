//! Mount back ends over a merged tree, and the lazy engine the service drives.
