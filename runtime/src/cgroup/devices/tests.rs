use oci_spec::runtime::LinuxDeviceCgroup;

use super::program::{self, DeviceProgram};
use super::rules::{ALL, DEFAULTS, Kind, MKNOD, READ, Rule, WRITE};
use super::{AllowList, allow_list, compile, program::Instruction};

/// What a process asks for.
#[derive(Clone, Copy, Debug)]
struct Request {
    kind: Kind,
    major: u32,
    minor: u32,
    access: u8,
}

/// Runs the instructions the compiler emits, and nothing more of the instruction set.
fn run(program: &DeviceProgram, request: Request) -> bool {
    let context = [
        u32::from(request.access) << 16 | request.kind as u32,
        request.major,
        request.minor,
    ];
    let mut registers = [0_u32; 6];
    let mut at = 0;
    loop {
        let insn: Instruction = program.instructions()[at];
        let imm = insn.imm as u32;
        let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
        at += 1;
        let mut jump_if = |condition: bool| {
            if condition {
                at += usize::try_from(insn.off).expect("no backward jumps");
            }
        };
        match insn.code {
            program::LOAD => registers[dst] = context[insn.off as usize / 4],
            program::MOV => registers[dst] = imm,
            program::MOV_REG => registers[dst] = registers[src],
            program::AND => registers[dst] &= imm,
            program::SHIFT_RIGHT => registers[dst] >>= imm,
            program::JUMP_IF_EQUAL => jump_if(registers[dst] == imm),
            program::JUMP_UNLESS_EQUAL => jump_if(registers[dst] != imm),
            program::EXIT => return registers[0] != 0,
            code => panic!("instruction {code:#x} is not one the compiler emits"),
        }
    }
}

/// The meaning of a rule list, without any cleverness: the last match decides for each access.
fn naive(rules: &[Rule], request: Request) -> bool {
    [MKNOD, READ, WRITE]
        .into_iter()
        .filter(|bit| request.access & bit != 0)
        .all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.kind.is_none_or(|kind| kind == request.kind)
                        && rule.major.is_none_or(|major| major == request.major)
                        && rule.minor.is_none_or(|minor| minor == request.minor)
                        && rule.access & bit != 0
                })
                .is_some_and(|rule| rule.allow)
        })
}

fn from_json(json: &str) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_str(json).expect("the test's JSON is valid")
}

fn allowed(json: &str, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    run(
        &compile(&from_json(json)).expect(json),
        Request {
            kind,
            major,
            minor,
            access,
        },
    )
}

#[test]
fn rules_mean_what_the_spec_says() {
    const NONE: &str = r#"[{"allow":false,"access":"rwm"}]"#;
    const FUSE: &str = r#"[{"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]"#;
    const ANY: &str =
        r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"a","access":"rwm"}]"#;
    const HOLE: &str = r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"b","access":"w"}]"#;
    const SPLIT: &str = r#"[{"allow":true,"type":"c","major":9,"access":"r"},
        {"allow":true,"type":"c","major":9,"minor":1,"access":"w"}]"#;
    const ODD: &str = r#"[{"allow":true,"type":"c","major":10,"minor":229,"access":"ra"},
        {"allow":true,"access":"x"}]"#;
    const BIG: &str = r#"[{"allow":true,"type":"b","major":4294967295,"minor":0,"access":"r"}]"#;
    let table = [
        // Nothing but the defaults.
        (NONE, Kind::Char, 1, 3, ALL, true),
        (NONE, Kind::Char, 1, 1, READ, false),
        (NONE, Kind::Char, 5, 2, READ | WRITE, true),
        (NONE, Kind::Char, 136, 77, READ | WRITE, true),
        (NONE, Kind::Block, 8, 0, MKNOD, true),
        (NONE, Kind::Block, 8, 0, READ, false),
        (NONE, Kind::Block, 8, 0, READ | MKNOD, false),
        ("[]", Kind::Char, 10, 229, READ, false),
        ("[]", Kind::Char, 1, 9, READ, true),
        // One more device; only the access it was given.
        (FUSE, Kind::Char, 10, 229, READ | WRITE, true),
        (FUSE, Kind::Block, 10, 229, READ, false),
        (FUSE, Kind::Char, 10, 228, READ, false),
        // The last match decides.
        (ANY, Kind::Block, 8, 0, ALL, true),
        (HOLE, Kind::Block, 8, 0, READ, true),
        (HOLE, Kind::Block, 8, 0, WRITE, false),
        (HOLE, Kind::Block, 8, 0, READ | WRITE, false),
        (HOLE, Kind::Char, 8, 0, READ | WRITE, true),
        // A request may be covered by two rules.
        (SPLIT, Kind::Char, 9, 1, READ | WRITE, true),
        (SPLIT, Kind::Char, 9, 2, READ | WRITE, false),
        // Letters that stand for no access mean nothing.
        (ODD, Kind::Char, 10, 229, READ, true),
        (ODD, Kind::Char, 10, 229, WRITE, false),
        (BIG, Kind::Block, u32::MAX, 0, READ, true),
        (BIG, Kind::Block, 0x7fff_ffff, 0, READ, false),
    ];
    for (json, kind, major, minor, access, expected) in table {
        let got = allowed(json, kind, major, minor, access);
        assert_eq!(got, expected, "{json} {kind:?} {major}:{minor} {access:#b}");
    }
}

#[test]
fn a_bad_rule_is_refused_with_its_index() {
    let table = [
        (
            r#"[{"allow":true,"access":"r"},{"allow":true}]"#,
            "devices[1]: device access at 1 field cannot be empty",
        ),
        (
            r#"[{"allow":true,"type":"p","access":"r"}]"#,
            "invalid cgroup device type \"p\"",
        ),
        (
            r#"[{"allow":true,"type":"c","major":4294967296,"access":"r"}]"#,
            "major 4294967296",
        ),
    ];
    for (json, part) in table {
        let error = compile(&from_json(json)).expect_err(json).to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn code_after_a_universal_rule_is_not_emitted() {
    let deny_all =
        from_json(r#"[{"allow":true,"type":"c","access":"r"},{"allow":false,"access":"rwm"}]"#);
    let only_deny = from_json(r#"[{"allow":false,"access":"rwm"}]"#);
    assert_eq!(compile(&deny_all).unwrap(), compile(&only_deny).unwrap());
}

/// A small generator of reproducible numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn rule(&mut self) -> Rule {
        let kind = [None, Some(Kind::Block), Some(Kind::Char)][self.below(3) as usize];
        let number = |n: u64| (n < 3).then_some(n as u32);
        Rule {
            allow: self.below(2) == 0,
            kind,
            major: number(self.below(5)),
            minor: number(self.below(5)),
            access: 1 + self.below(7) as u8,
        }
    }
}

#[test]
fn any_rule_list_means_the_same_as_its_naive_reading() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..2_000 {
        let count = random.below(8);
        let mut rules: Vec<Rule> = (0..count).map(|_| random.rule()).collect();
        if random.below(2) == 0 {
            rules.extend(DEFAULTS);
        }
        let program = program::emit(&rules);
        for _ in 0..50 {
            let request = Request {
                kind: [Kind::Block, Kind::Char][random.below(2) as usize],
                major: random.below(4) as u32,
                minor: random.below(4) as u32,
                access: 1 + random.below(7) as u8,
            };
            assert_eq!(
                run(&program, request),
                naive(&rules, request),
                "{rules:?} {request:?}"
            );
        }
    }
}

fn list_of(rules: &str) -> AllowList {
    let rules: Vec<_> = serde_json::from_str(rules).expect("the test's JSON is valid");
    allow_list(&rules).expect("valid rules")
}

#[test]
fn a_list_has_what_is_left_of_the_rules_and_the_defaults() {
    let AllowList::Only(entries) = list_of(
        r#"[{"allow":true,"type":"c","major":7,"access":"rwm"},{"allow":false,"access":"rwm"},
            {"allow":true,"type":"b","major":8,"minor":0,"access":"rw"},
            {"allow":true,"type":"b","major":8,"minor":0,"access":"m"},
            {"allow":true,"major":10,"access":"rwm"},
            {"allow":false,"type":"c","major":10,"access":"w"}]"#,
    ) else {
        panic!("not everything is allowed");
    };
    let access = |device: &str| {
        let entry = entries.iter().find(|(name, _)| name == device);
        entry.map(|(_, access)| access.as_str())
    };
    assert_eq!(access("char-7"), None);
    assert_eq!(access("/dev/block/8:0"), Some("rwm"));
    assert_eq!(
        (access("block-10"), access("char-10")),
        (Some("rwm"), Some("rm"))
    );
    assert_eq!(
        (access("/dev/char/1:3"), access("char-136")),
        (Some("rwm"), Some("rwm"))
    );
    assert_eq!(
        (access("char-*"), access("block-*")),
        (Some("m"), Some("m"))
    );
}

#[test]
fn an_exception_from_everything_is_left_to_the_program() {
    let rules =
        r#"[{"allow":true,"access":"rwm"},{"allow":false,"type":"c","major":1,"access":"w"}]"#;
    assert_eq!(list_of(rules), AllowList::Everything);
}
