//! What the benchmarks start inside a host besides the runtimes: the floor that every runtime is
//! held against, the library as the shim uses it, a scale, and what a test tries of a mounted tree. They are programs of their own
//! because start-up and size of the benchmark itself must not be part of a figure.

pub mod sys;
