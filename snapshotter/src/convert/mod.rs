//! Image tools: converting images into lazily readable formats.
