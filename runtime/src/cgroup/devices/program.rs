//! Device rules as BPF instructions (the kernel's instruction-set document, Documentation/bpf).

use super::rules::{ALL, Rule};

/// One `struct bpf_insn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Jump distance or memory offset.
    pub off: i16,
    /// Immediate operand.
    pub imm: i32,
}

impl Instruction {
    /// The eight bytes of `struct bpf_insn` on a little-endian machine.
    fn encode(self) -> u64 {
        u64::from(self.code)
            | u64::from(self.dst | self.src << 4) << 8
            | u64::from(self.off as u16) << 16
            | u64::from(self.imm as u32) << 32
    }
}

/// A compiled device program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProgram {
    instructions: Vec<Instruction>,
}

impl DeviceProgram {
    /// The instructions.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// The instructions as bpf(2) takes them.
    pub(super) fn encode(&self) -> Vec<u64> {
        self.instructions.iter().map(|insn| insn.encode()).collect()
    }
}

// Opcodes: LDX | MEM | W, and 32-bit ALU and JMP32 operations with an immediate (K) or register (X).
pub(super) const LOAD: u8 = 0x61;
pub(super) const MOV: u8 = 0xb4;
pub(super) const MOV_REG: u8 = 0xbc;
pub(super) const AND: u8 = 0x54;
pub(super) const SHIFT_RIGHT: u8 = 0x74;
pub(super) const JUMP_IF_EQUAL: u8 = 0x16;
pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x56;
pub(super) const EXIT: u8 = 0x95;

// Registers: the verdict, the context, and what the request is.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn with_imm(code: u8, dst: u8, imm: i32) -> Instruction {
    Instruction {
        code,
        dst,
        src: 0,
        off: 0,
        imm,
    }
}

fn with_reg(code: u8, dst: u8, src: u8) -> Instruction {
    Instruction {
        code,
        dst,
        src,
        off: 0,
        imm: 0,
    }
}

fn load(dst: u8, off: i16) -> Instruction {
    Instruction {
        code: LOAD,
        dst,
        src: CONTEXT,
        off,
        imm: 0,
    }
}

/// Emits the rules from the last to the first: a rule that matches either decides or takes the
/// kinds of access it allows off the request, until nothing of the request is left.
pub(super) fn emit(rules: &[Rule]) -> DeviceProgram {
    // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
    let mut instructions = vec![
        load(KIND, 0),
        with_reg(MOV_REG, ACCESS, KIND),
        with_imm(AND, KIND, 0xffff),
        with_imm(SHIFT_RIGHT, ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        if rule.is_universal() {
            // Nothing is reached after this, and the verifier refuses unreachable code.
            instructions.extend(verdict(rule.allow));
            return DeviceProgram { instructions };
        }
        emit_rule(&mut instructions, rule);
    }
    instructions.extend(verdict(false));
    DeviceProgram { instructions }
}

fn verdict(allow: bool) -> [Instruction; 2] {
    [
        with_imm(MOV, VERDICT, i32::from(allow)),
        with_imm(EXIT, 0, 0),
    ]
}

fn emit_rule(out: &mut Vec<Instruction>, rule: &Rule) {
    let mut body = Vec::with_capacity(5);
    let access = i32::from(rule.access);
    let partial = rule.access != ALL;
    if partial && rule.allow {
        body.push(with_imm(AND, ACCESS, i32::from(ALL & !rule.access)));
        body.push(Instruction {
            off: 2,
            ..with_imm(JUMP_UNLESS_EQUAL, ACCESS, 0)
        });
    } else if partial {
        body.push(with_reg(MOV_REG, VERDICT, ACCESS));
        body.push(with_imm(AND, VERDICT, access));
        body.push(Instruction {
            off: 2,
            ..with_imm(JUMP_IF_EQUAL, VERDICT, 0)
        });
    }
    body.extend(verdict(rule.allow));

    let checks = [
        (KIND, rule.kind.map(|kind| kind as i32)),
        (MAJOR, rule.major.map(|major| major as i32)),
        (MINOR, rule.minor.map(|minor| minor as i32)),
    ];
    let checks: Vec<_> = checks
        .iter()
        .filter_map(|(reg, v)| v.map(|v| (*reg, v)))
        .collect();
    for (index, (register, value)) in checks.iter().enumerate() {
        let off = (checks.len() - 1 - index + body.len()) as i16;
        out.push(Instruction {
            off,
            ..with_imm(JUMP_UNLESS_EQUAL, *register, *value)
        });
    }
    out.extend(body);
}
