//! Writing classic BPF from the end to the beginning.
//!
//! All jumps of classic BPF go forward, so a program that is written backwards knows every
//! target when it needs it. Conditional jumps reach 255 instructions; the assembler puts a
//! trampoline or a fresh return near the jump when a target is farther away.

use std::collections::HashMap;

use libc::sock_filter;

/// Operations of `linux/bpf_common.h`.
pub(super) const LD_ABS: u16 = 0x20;
pub(super) const ALU_AND: u16 = 0x54;
pub(super) const JMP_JA: u16 = 0x05;
pub(super) const JMP_JEQ: u16 = 0x15;
pub(super) const JMP_JGT: u16 = 0x25;
pub(super) const JMP_JGE: u16 = 0x35;
pub(super) const RET: u16 = 0x06;

/// Reach that leaves room for the two trampolines a jump may need itself.
const REACH: usize = 253;

/// Where a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The filter ends with this value.
    Return(u32),
    /// An instruction that is written already.
    At(Label),
}

/// A written instruction, counted from the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program that grows towards its beginning.
#[derive(Default)]
pub(super) struct Assembler {
    reversed: Vec<sock_filter>,
    /// The latest return of each value.
    returns: HashMap<u32, Label>,
}

impl Assembler {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(sock_filter { code, jt, jf, k });
        Label(self.reversed.len() - 1)
    }

    /// Instructions between the next one to be written and `label`.
    fn distance(&self, label: Label) -> usize {
        self.reversed.len() - label.0 - 1
    }

    /// A label within reach that is as good as `target`.
    fn near(&mut self, target: Target) -> Label {
        match target {
            Target::Return(value) => match self.returns.get(&value) {
                Some(label) if self.distance(*label) <= REACH => *label,
                _ => {
                    let label = self.push(RET, 0, 0, value);
                    self.returns.insert(value, label);
                    label
                }
            },
            Target::At(label) if self.distance(label) <= REACH => label,
            Target::At(label) => {
                let distance = self.distance(label) as u32;
                self.push(JMP_JA, 0, 0, distance)
            }
        }
    }

    /// A conditional jump on the accumulator.
    pub(super) fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Label {
        let (yes, no) = (self.near(yes), self.near(no));
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.push(code, jt, jf, k)
    }

    /// A load of a word of `struct seccomp_data`; control runs on to what was written last.
    pub(super) fn load(&mut self, offset: u32) -> Label {
        self.push(LD_ABS, 0, 0, offset)
    }

    /// Masks the accumulator; control runs on to what was written last.
    pub(super) fn and(&mut self, mask: u32) -> Label {
        self.push(ALU_AND, 0, 0, mask)
    }

    /// A label for a target that control can run on to or that can be returned to callers.
    pub(super) fn place(&mut self, target: Target) -> Label {
        match target {
            Target::Return(_) => self.near(target),
            Target::At(label) => label,
        }
    }

    /// Makes sure that control that runs on reaches `target`.
    pub(super) fn run_on(&mut self, target: Target) {
        let label = self.place(target);
        let distance = self.distance(label);
        if distance > 0 {
            self.push(JMP_JA, 0, 0, distance as u32);
        }
    }

    /// The program from its beginning.
    pub(super) fn finish(mut self) -> Vec<sock_filter> {
        self.reversed.reverse();
        self.reversed
    }
}
