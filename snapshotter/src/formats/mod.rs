//! Layer formats: bytes to a layer index, one file a format, without any I/O.
