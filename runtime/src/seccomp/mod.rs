//! Seccomp profiles compiled to classic BPF, without libseccomp.
//!
//! [`compile`] is pure: `linux.seccomp` in, a program out whose cost is a binary search over
//! system call numbers. [`Cache`] keeps programs on disk by content. Loading a [`Filter`] is the
//! business of the process that is to be restricted.
//!
//! What a profile means follows runc and libseccomp: an unconditional rule decides for its
//! system call (the first one wins), otherwise the first conditional rule that matches,
//! otherwise the default; conditions of a rule are ANDed unless two of them are on the same
//! argument, then each is a rule of its own; unknown names are left out; system calls newer than
//! every one the profile names answer ENOSYS, so that programs fall back.

mod arch;
mod assembler;
mod cache;
mod emit;
mod error;
mod filter;
mod policy;

use oci_spec::runtime::LinuxSeccomp;

pub use arch::Architecture;
pub use cache::Cache;
pub use error::{Result, SeccompError};
pub use filter::Filter;

/// Compiles a profile for the machine this runs on.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    compile_for(Architecture::NATIVE, profile)
}

/// Compiles a profile for a machine of any supported architecture.
pub fn compile_for(native: Architecture, profile: &LinuxSeccomp) -> Result<Filter> {
    let policy = policy::Policy::from_spec(native, profile)?;
    Ok(Filter {
        insns: emit::program(&policy)?,
        flags: policy.flags,
        notify: policy.notify,
    })
}

#[cfg(test)]
mod tests;
