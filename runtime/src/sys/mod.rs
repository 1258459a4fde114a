//! Raw system calls on owned descriptors: the only `unsafe` code of the crate.

pub(crate) mod bpf;
pub(crate) mod seccomp;
