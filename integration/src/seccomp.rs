//! Seccomp filters of a process as the kernel has them.

use crate::error::{Error, Result};
use crate::sys;

/// An instruction of classic BPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions a comparison skips when it holds.
    pub jt: u8,
    /// How many it skips when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// The filters of a process, the oldest first. It is stopped for a moment; privileges over the
/// whole machine are needed.
pub fn filters_of(pid: i32) -> Result<Vec<Vec<Instruction>>> {
    let filters = sys::seccomp_filters(pid).map_err(Error::system("read seccomp filters"))?;
    let instruction = |raw: &libc::sock_filter| Instruction {
        code: raw.code,
        jt: raw.jt,
        jf: raw.jf,
        k: raw.k,
    };
    Ok(filters
        .iter()
        .map(|filter| filter.iter().map(instruction).collect())
        .collect())
}
