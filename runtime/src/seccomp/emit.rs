//! A resolved profile as instructions: architecture, then a binary search over ranges of system
//! call numbers, then the argument comparisons of the few calls that have them.

use libc::sock_filter;
use oci_spec::runtime::LinuxSeccompOperator as Op;

use super::arch::{Architecture, X32_BIT};
use super::assembler::{Assembler, JMP_JEQ, JMP_JGE, JMP_JGT, Target};
use super::error::{Result, SeccompError};
use super::policy::{
    ArchPolicy, Condition, Conditional, Policy, RET_BAD_ARCH, RET_ENOSYS, Verdict,
};

/// `BPF_MAXINSNS` of `linux/bpf_common.h`.
const MAX_INSTRUCTIONS: usize = 4096;

/// Offsets in `struct seccomp_data`.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// Numbers from `first` up to the next range go to `target`.
struct Range {
    first: u32,
    target: Target,
}

/// Compiles a resolved profile.
pub(super) fn program(policy: &Policy) -> Result<Vec<sock_filter>> {
    let mut out = Assembler::default();
    let mut next = Target::Return(RET_BAD_ARCH);
    let mut audits: Vec<u32> = Vec::new();
    for arch in &policy.archs {
        if !audits.contains(&arch.arch.audit()) {
            audits.push(arch.arch.audit());
        }
    }
    // Backwards, so that the native architecture is compared first.
    let mut blocks = Vec::with_capacity(audits.len());
    for audit in audits.iter().rev() {
        let ranges = ranges(&mut out, policy, *audit);
        let search = search(&mut out, &ranges);
        out.run_on(search);
        blocks.push((*audit, Target::At(out.load(OFFSET_NR))));
    }
    for (audit, block) in blocks {
        next = Target::At(out.branch(JMP_JEQ, audit, block, next));
    }
    out.run_on(next);
    out.load(OFFSET_ARCH);
    let insns = out.finish();
    if insns.len() > MAX_INSTRUCTIONS {
        return Err(SeccompError::TooLong {
            needed: insns.len(),
            limit: MAX_INSTRUCTIONS,
        });
    }
    Ok(insns)
}

/// All numbers of an audit architecture, which on x86_64 is two architectures, as ranges in
/// ascending order; the first begins at 0. The comparisons of conditional calls are written.
fn ranges(out: &mut Assembler, policy: &Policy, audit: u32) -> Vec<Range> {
    let mut ranges = Ranges(Vec::new());
    let part = |arch| policy.archs.iter().find(move |part| part.arch == arch);
    if audit == Architecture::X86_64.audit() {
        match part(Architecture::X86_64) {
            Some(part) => part_ranges(out, policy, part, 0, X32_BIT - 1, &mut ranges),
            None => ranges.push(0, Target::Return(RET_BAD_ARCH)),
        }
        if let Some(part) = part(Architecture::X32) {
            part_ranges(out, policy, part, X32_BIT, u32::MAX, &mut ranges);
        } else {
            ranges.push(X32_BIT, Target::Return(RET_BAD_ARCH));
            // A tracer makes the kernel skip a call by setting -1: no x32 call.
            ranges.push(u32::MAX, Target::Return(policy.default));
        }
    } else {
        for part in policy
            .archs
            .iter()
            .filter(|part| part.arch.audit() == audit)
        {
            part_ranges(out, policy, part, 0, u32::MAX, &mut ranges);
        }
    }
    ranges.0
}

fn part_ranges(
    out: &mut Assembler,
    policy: &Policy,
    part: &ArchPolicy,
    first: u32,
    last: u32,
    ranges: &mut Ranges,
) {
    // What the profile does not name: the default up to the newest call it knows.
    let unnamed = |number: u32| match part.newest {
        Some(newest) if number > newest => Target::Return(RET_ENOSYS),
        _ => Target::Return(policy.default),
    };
    ranges.push(first, unnamed(first));
    let mut newest = part.newest;
    for (number, verdict) in &part.calls {
        if let Some(known) = newest.filter(|known| number > known) {
            ranges.push(known + 1, unnamed(known + 1));
            newest = None;
        }
        ranges.push(*number, verdict_target(out, policy, part.arch, verdict));
        if *number < last {
            ranges.push(number + 1, unnamed(number + 1));
        }
    }
    if let Some(known) = newest.filter(|known| *known < last) {
        ranges.push(known + 1, unnamed(known + 1));
    }
}

struct Ranges(Vec<Range>);

impl Ranges {
    /// Begins a new range, in the place of one that begins at the same number and joined to the
    /// one before if that goes the same way.
    fn push(&mut self, first: u32, target: Target) {
        if self.0.last().is_some_and(|range| range.first == first) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|range| range.target != target) {
            self.0.push(Range { first, target });
        }
    }
}

fn search(out: &mut Assembler, ranges: &[Range]) -> Target {
    if let [range] = ranges {
        return range.target;
    }
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let pivot = above[0].first;
    let yes = search(out, above);
    let no = search(out, below);
    Target::At(out.branch(JMP_JGE, pivot, yes, no))
}

fn verdict_target(
    out: &mut Assembler,
    policy: &Policy,
    arch: Architecture,
    verdict: &Verdict,
) -> Target {
    match verdict {
        Verdict::Always(ret) => Target::Return(*ret),
        Verdict::FirstOf(conditionals) => conditionals
            .iter()
            .rev()
            .fold(Target::Return(policy.default), |otherwise, conditional| {
                conditional_target(out, arch, conditional, otherwise)
            }),
    }
}

fn conditional_target(
    out: &mut Assembler,
    arch: Architecture,
    conditional: &Conditional,
    otherwise: Target,
) -> Target {
    conditional
        .conditions
        .iter()
        .rev()
        .fold(Target::Return(conditional.ret), |then, condition| {
            if arch.is_64_bit() {
                compare_64(out, condition, then, otherwise)
            } else {
                compare_32(out, condition, then, otherwise)
            }
        })
}

/// Compares the low word with the low word of the value, as libseccomp does for 32-bit callers.
fn compare_32(out: &mut Assembler, condition: &Condition, yes: Target, no: Target) -> Target {
    let value = condition.value as u32;
    let (code, k, yes, no) = match condition.op {
        Op::ScmpCmpEq => (JMP_JEQ, value, yes, no),
        Op::ScmpCmpNe => (JMP_JEQ, value, no, yes),
        Op::ScmpCmpGt => (JMP_JGT, value, yes, no),
        Op::ScmpCmpLe => (JMP_JGT, value, no, yes),
        Op::ScmpCmpGe => (JMP_JGE, value, yes, no),
        Op::ScmpCmpLt => (JMP_JGE, value, no, yes),
        Op::ScmpCmpMaskedEq => {
            out.branch(JMP_JEQ, condition.value_two as u32, yes, no);
            out.and(value);
            return Target::At(load_low(out, condition));
        }
    };
    out.branch(code, k, yes, no);
    Target::At(load_low(out, condition))
}

/// Compares high words first; equal ones leave it to the low words.
fn compare_64(out: &mut Assembler, condition: &Condition, yes: Target, no: Target) -> Target {
    let high = (condition.value >> 32) as u32;
    let low = compare_32(out, condition, yes, no);
    match condition.op {
        Op::ScmpCmpEq => {
            out.branch(JMP_JEQ, high, low, no);
        }
        Op::ScmpCmpNe => {
            out.branch(JMP_JEQ, high, low, yes);
        }
        Op::ScmpCmpMaskedEq => {
            out.branch(JMP_JEQ, (condition.value_two >> 32) as u32, low, no);
            out.and(high);
        }
        Op::ScmpCmpGt | Op::ScmpCmpGe => ordered(out, high, low, yes, no),
        Op::ScmpCmpLt | Op::ScmpCmpLe => ordered(out, high, low, no, yes),
    }
    Target::At(out.load(OFFSET_ARGS + 8 * u32::from(condition.index) + 4))
}

/// A greater high word decides, an equal one leaves it to the low word.
fn ordered(out: &mut Assembler, high: u32, equal: Target, greater: Target, less: Target) {
    let at_most = Target::At(out.branch(JMP_JEQ, high, equal, less));
    out.branch(JMP_JGT, high, greater, at_most);
}

fn load_low(out: &mut Assembler, condition: &Condition) -> super::assembler::Label {
    out.load(OFFSET_ARGS + 8 * u32::from(condition.index))
}
