//! Turns reads of absent data into verified chunks: single flight, order, prefetch.
