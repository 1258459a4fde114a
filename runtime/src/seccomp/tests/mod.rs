//! The compiler against an interpreter of classic BPF and a naive reading of the profile.

use libc::sock_filter;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompArg, LinuxSeccompOperator as Op};

use super::arch::X32_BIT;
use super::assembler::{ALU_AND, JMP_JA, JMP_JEQ, JMP_JGE, JMP_JGT, LD_ABS, RET};
use super::{Architecture, Filter, compile_for};

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_THREAD: u32 = 0;

/// `struct seccomp_data` without the instruction pointer.
#[derive(Clone, Copy, Debug)]
struct Call {
    audit: u32,
    nr: u32,
    args: [u64; 6],
}

/// Runs a filter and counts its steps.
fn run(insns: &[sock_filter], call: &Call) -> (u32, usize) {
    let word = |offset: u32| match offset {
        0 => call.nr,
        4 => call.audit,
        16..64 => (call.args[(offset as usize - 16) / 8] >> ((offset % 8) * 8)) as u32,
        _ => panic!("load of offset {offset}"),
    };
    let (mut at, mut accumulator, mut steps) = (0, 0_u32, 0);
    loop {
        let insn = insns[at];
        at += 1;
        steps += 1;
        let mut branch = |yes: bool| at += usize::from(if yes { insn.jt } else { insn.jf });
        match insn.code {
            LD_ABS => accumulator = word(insn.k),
            ALU_AND => accumulator &= insn.k,
            JMP_JA => at += insn.k as usize,
            JMP_JEQ => branch(accumulator == insn.k),
            JMP_JGT => branch(accumulator > insn.k),
            JMP_JGE => branch(accumulator >= insn.k),
            RET => return (insn.k, steps),
            code => panic!("instruction {code:#x} is not one the compiler emits"),
        }
    }
}

fn verdict(filter: &Filter, arch: Architecture, nr: u32, args: [u64; 6]) -> u32 {
    run(
        &filter.insns,
        &Call {
            audit: arch.audit(),
            nr,
            args,
        },
    )
    .0
}

fn holds(arg: &LinuxSeccompArg, args: &[u64; 6], wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let (got, value) = (cut(args[arg.index()]), cut(arg.value()));
    match arg.op() {
        Op::ScmpCmpNe => got != value,
        Op::ScmpCmpLt => got < value,
        Op::ScmpCmpLe => got <= value,
        Op::ScmpCmpEq => got == value,
        Op::ScmpCmpGe => got >= value,
        Op::ScmpCmpGt => got > value,
        Op::ScmpCmpMaskedEq => got & value == cut(arg.value_two().unwrap_or(0)),
    }
}

/// The meaning of a profile, entry by entry, for actions ALLOW and ERRNO.
fn naive(profile: &LinuxSeccomp, archs: &[Architecture], call: &Call) -> u32 {
    let Some(arch) = archs.iter().copied().find(|arch| {
        let x32 = call.nr & X32_BIT != 0 && arch.audit() == Architecture::X86_64.audit();
        arch.audit() == call.audit && x32 == (*arch == Architecture::X32)
    }) else {
        return KILL_THREAD;
    };
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let wide = !matches!(
        arch,
        Architecture::X86 | Architecture::Arm | Architecture::X32
    );
    let mut first_match = None;
    let mut newest = 0;
    for entry in profile.syscalls().iter().flatten() {
        let ret = entry.action().as_u32(entry.errno_ret());
        for name in entry.names() {
            let number = arch.number(name);
            newest = newest.max(number.unwrap_or(0));
            let direct = number == Some(call.nr);
            let muxed = arch.multiplexed(name).is_some_and(|(mux, sub)| {
                mux == call.nr && u64::from(sub) == call.args[0] & 0xffff_ffff
            });
            if ret == default || !(direct || muxed) {
                continue;
            }
            let conditions: Vec<_> = entry
                .args()
                .iter()
                .flatten()
                .filter(|arg| direct || arg.index() != 0)
                .collect();
            let unconditional = entry.args().iter().flatten().next().is_none();
            if direct && unconditional {
                return ret;
            }
            if conditions.iter().all(|arg| holds(arg, &call.args, wide)) {
                first_match = first_match.or(Some(ret));
            }
        }
    }
    match first_match {
        Some(ret) => ret,
        None if call.nr > newest && newest > 0 => ENOSYS,
        None => default,
    }
}

/// A profile of the shape of containerd's default: names on the allow list, conditions on
/// clone, socket and personality, ENOSYS for clone3, three architectures.
fn container_profile() -> LinuxSeccomp {
    let names = include_str!("names.txt")
        .split_whitespace()
        .collect::<Vec<_>>();
    let mask = 0x7e02_0000_u64;
    let persona = |value: u64| {
        serde_json::json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let mut syscalls = vec![
        serde_json::json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        serde_json::json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}),
    ];
    syscalls.extend([0, 8, 0x20000, 0x20008, 0xffff_ffff_u64].map(persona));
    syscalls.extend([
        serde_json::json!({"names": ["arch_prctl", "modify_ldt"], "action": "SCMP_ACT_ALLOW"}),
        serde_json::json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": mask, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}),
        serde_json::json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}),
    ]);
    serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    }))
    .expect("the test's profile is valid")
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).expect("the test's JSON is valid")
}

fn x86_64(json: &str) -> Filter {
    compile_for(Architecture::X86_64, &profile(json)).expect(json)
}

/// A small generator of reproducible numbers (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.next() % from.len() as u64) as usize]
    }

    fn call(&mut self, values: &[u64]) -> Call {
        let audits = Architecture::ALL.map(Architecture::audit);
        let audit = if self.next().is_multiple_of(16) {
            self.next() as u32
        } else {
            self.pick(&audits)
        };
        let nr = (self.next() % 560) as u32;
        let nr = match self.next() % 8 {
            0 => nr | X32_BIT,
            1 => self.pick(&[
                u32::MAX - 1,
                X32_BIT - 1,
                X32_BIT,
                0x0f_0005,
                102,
                117,
                56,
                41,
            ]),
            _ => nr,
        };
        let args = [(); 6].map(|()| match self.next() % 3 {
            0 => self.next() % 64,
            1 => self
                .pick(values)
                .wrapping_add(self.next() % 3)
                .wrapping_sub(1),
            _ => self.next(),
        });
        Call { audit, nr, args }
    }
}

fn agree(profile: &LinuxSeccomp, archs: &[Architecture], samples: usize, random: &mut Random) {
    let filter = compile_for(archs[0], profile).expect("compile");
    let mut values = vec![0, 40, 0x7e02_0000, u64::MAX, 1 << 32];
    let args = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|s| s.args().iter().flatten());
    values.extend(args.flat_map(|arg| [arg.value(), arg.value_two().unwrap_or(0)]));
    for _ in 0..samples {
        let call = random.call(&values);
        let expected = naive(profile, archs, &call);
        assert_eq!(
            run(&filter.insns, &call).0,
            expected,
            "{call:x?}\n{profile:#?}"
        );
    }
}

#[test]
fn the_container_profile_means_what_it_says() {
    let profile = container_profile();
    let archs = [Architecture::X86_64, Architecture::X86, Architecture::X32];
    agree(&profile, &archs, 40_000, &mut Random(7));
    let filter = compile_for(Architecture::X86_64, &profile).unwrap();
    for arch in archs {
        for nr in (0..600).map(|nr| {
            if arch == Architecture::X32 {
                nr | X32_BIT
            } else {
                nr
            }
        }) {
            let call = Call {
                audit: arch.audit(),
                nr,
                args: [0; 6],
            };
            let (got, steps) = run(&filter.insns, &call);
            assert_eq!(got, naive(&profile, &archs, &call), "{arch:?} {nr:#x}");
            assert!(steps <= 24, "{arch:?} {nr:#x} takes {steps} steps");
        }
    }
    assert!(
        filter.insns.len() < 1000,
        "{} instructions",
        filter.insns.len()
    );
}

#[test]
fn random_profiles_mean_what_they_say() {
    let mut random = Random(0x5eed);
    let names = include_str!("names.txt")
        .split_whitespace()
        .collect::<Vec<_>>();
    let ops = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    for _ in 0..300 {
        let mut syscalls = Vec::new();
        for _ in 0..random.next() % 20 {
            let picked: Vec<_> = (0..=random.next() % 6)
                .map(|_| random.pick(&names))
                .collect();
            let mut indexes = vec![0, 1, 2, 3, 4, 5];
            let args: Vec<_> = (0..random.next() % 4)
                .map(|_| {
                    let index = indexes.remove((random.next() % indexes.len() as u64) as usize);
                    let value = random.pick(&[0, 1, 40, 1 << 31, 1 << 32, (5 << 32) | 7, u64::MAX]);
                    let two = random.pick(&[0, 1, value, 5 << 32]);
                    let op = format!("SCMP_CMP_{}", random.pick(&ops));
                    serde_json::json!({"index": index, "value": value, "valueTwo": two, "op": op})
                })
                .collect();
            let (action, errno) = random.pick(&[("ALLOW", 0), ("ERRNO", 13), ("ERRNO", 1)]);
            syscalls.push(serde_json::json!({"names": picked, "args": args,
                "action": format!("SCMP_ACT_{action}"), "errnoRet": errno}));
        }
        let native = random.pick(&[
            Architecture::X86_64,
            Architecture::Aarch64,
            Architecture::Riscv64,
        ]);
        let mut archs = vec![native];
        for extra in Architecture::ALL {
            if extra != native && random.next().is_multiple_of(2) {
                archs.push(extra);
            }
        }
        // The naive reading has no word for x86_64 machines without its own architecture.
        if archs.contains(&Architecture::X32) && !archs.contains(&Architecture::X86_64) {
            archs.push(Architecture::X86_64);
        }
        let listed: Vec<_> = archs.iter().map(|arch| arch.spec_name()).collect();
        let json = serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "architectures": listed, "syscalls": syscalls});
        agree(
            &serde_json::from_value(json).unwrap(),
            &archs,
            400,
            &mut random,
        );
    }
}

#[test]
fn each_operator_compares_all_64_bits() {
    let big = 0x0000_0005_0000_0007_u64;
    let table = [
        ("EQ", big, 0, [(big, true), (7, false), (5 << 32, false)]),
        ("NE", big, 0, [(big, false), (7, true), (5 << 32, true)]),
        (
            "LT",
            big,
            0,
            [(big, false), (big - 1, true), (6 << 32, false)],
        ),
        (
            "LE",
            big,
            0,
            [(big, true), (big + 1, false), (4 << 32 | 9, true)],
        ),
        (
            "GT",
            big,
            0,
            [(big, false), (big + 1, true), (4 << 32 | 9, false)],
        ),
        (
            "GE",
            big,
            0,
            [(big, true), (big - 1, false), (6 << 32, true)],
        ),
        (
            "MASKED_EQ",
            0xff_0000_00ff,
            big,
            [(big, true), (big | 0xf00, true), (7, false)],
        ),
    ];
    for (op, value, two, cases) in table {
        let filter = x86_64(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW",
            "args":[{{"index":3,"value":{value},"valueTwo":{two},"op":"SCMP_CMP_{op}"}}]}}]}}"#
        ));
        for (arg, allowed) in cases {
            let got = verdict(&filter, Architecture::X86_64, 0, [0, 0, 0, arg, 0, 0]);
            assert_eq!(got == ALLOW, allowed, "{op} {value:#x} {arg:#x}");
        }
    }
}

#[test]
fn each_action_has_its_return_value() {
    let table = [
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("KILL_PROCESS", 0x8000_0000),
        ("TRAP", 0x0003_0000),
        ("ERRNO", 0x0005_0007),
        ("NOTIFY", 0x7fc0_0000),
        ("TRACE", 0x7ff0_0007),
        ("LOG", 0x7ffc_0000),
    ];
    for (action, ret) in table {
        let filter = x86_64(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/l","syscalls":
            [{{"names":["read"],"action":"SCMP_ACT_{action}","errnoRet":7}}]}}"#
        ));
        assert_eq!(
            verdict(&filter, Architecture::X86_64, 0, [0; 6]),
            ret,
            "{action}"
        );
        assert_eq!(
            verdict(&filter, Architecture::X86_64, 1, [0; 6]),
            ALLOW,
            "{action}"
        );
        assert_eq!(filter.notify, action == "NOTIFY");
        assert_eq!(filter.flags & 8 != 0, filter.notify);
    }
}

#[test]
fn conditions_on_one_argument_are_alternatives() {
    let filter = x86_64(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW",
        "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"},
                {"index":1,"value":9,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    for (args, ret) in [
        ([1, 0], ALLOW),
        ([2, 0], ALLOW),
        ([5, 9], ALLOW),
        ([5, 5], EPERM),
    ] {
        let args = [args[0], args[1], 0, 0, 0, 0];
        assert_eq!(
            verdict(&filter, Architecture::X86_64, 0, args),
            ret,
            "{args:?}"
        );
    }
}

#[test]
fn an_unconditional_rule_decides_wherever_it_stands() {
    let filter = x86_64(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
        {"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]},
        {"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["read"],"action":"SCMP_ACT_LOG"}]}"#,
    );
    assert_eq!(verdict(&filter, Architecture::X86_64, 0, [1; 6]), ALLOW);
}

#[test]
fn foreign_and_x32_calls_meet_the_bad_architecture_action() {
    let filter = x86_64(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["write"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let table = [
        (Architecture::X86_64, 1, ALLOW),
        (Architecture::X86, 3, KILL_THREAD),
        (Architecture::Aarch64, 63, KILL_THREAD),
        (Architecture::X86_64, X32_BIT, KILL_THREAD),
        (Architecture::X86_64, u32::MAX - 1, KILL_THREAD),
        (Architecture::X86_64, u32::MAX, EPERM),
        (Architecture::X86_64, X32_BIT - 1, ENOSYS),
    ];
    for (arch, nr, ret) in table {
        assert_eq!(verdict(&filter, arch, nr, [0; 6]), ret, "{arch:?} {nr:#x}");
    }
}

#[test]
fn calls_newer_than_the_profile_are_unknown_unless_the_default_is_permissive() {
    let with = |default: &str| {
        x86_64(&format!(
            r#"{{"defaultAction":"SCMP_ACT_{default}","syscalls":
            [{{"names":["openat2","read"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        ))
    };
    for (default, ret) in [
        ("ERRNO", ENOSYS),
        ("KILL_PROCESS", ENOSYS),
        ("LOG", 0x7ffc_0000),
    ] {
        assert_eq!(
            verdict(&with(default), Architecture::X86_64, 438, [0; 6]),
            ret,
            "{default}"
        );
    }
    assert_eq!(
        verdict(&with("ERRNO"), Architecture::X86_64, 436, [0; 6]),
        EPERM
    );
}

#[test]
fn multiplexed_calls_of_x86_follow_the_direct_ones() {
    let mut profile = profile(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["accept","shmat","socket"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    profile.set_architectures(Some(vec![Arch::ScmpArchX86]));
    let filter = compile_for(Architecture::X86_64, &profile).unwrap();
    let table = [
        (102, 5, ALLOW),
        (102, 1, ALLOW),
        (102, 2, EPERM),
        (117, 21, ALLOW),
        (117, 1, EPERM),
        (359, 0, ALLOW),
    ];
    for (nr, call, ret) in table {
        let args = [call, 0, 0, 0, 0, 0];
        assert_eq!(
            verdict(&filter, Architecture::X86, nr, args),
            ret,
            "{nr} {call}"
        );
    }
}

#[test]
fn flags_default_to_spec_allow_and_need_a_listener_for_waiting() {
    let table = [
        ("", 4),
        (r#","flags":[]"#, 0),
        (
            r#","flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"]"#,
            2,
        ),
        (r#","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#, 0),
    ];
    for (json, flags) in table {
        assert_eq!(
            x86_64(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW"{json}}}"#)).flags,
            flags
        );
    }
    let waiting = x86_64(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/l","flags":["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls":[{"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}"#,
    );
    assert_eq!(waiting.flags, 8 | 32);
}

#[test]
fn a_profile_that_cannot_work_is_refused_with_its_field() {
    let table = [
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            "defaultAction: SCMP_ACT_NOTIFY cannot",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/l","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "seccomp listenerPath is not set",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"m"}"#,
            "listenerMetadata: must not be set",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":[""],"action":"SCMP_ACT_LOG"}]}"#,
            "syscalls[0].names: empty string",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "syscalls[0].args: index 6",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000}"#,
            "defaultErrnoRet: 70000",
        ),
    ];
    for (json, part) in table {
        let error = compile_for(Architecture::X86_64, &profile(json))
            .expect_err(json)
            .to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn a_program_longer_than_the_kernel_takes_is_refused() {
    let rules: Vec<_> = (0..1500)
        .map(|value| {
            serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    let json = |count: usize| serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": &rules[..count]});
    let long = compile_for(
        Architecture::X86_64,
        &serde_json::from_value(json(1500)).unwrap(),
    );
    assert!(
        long.unwrap_err()
            .to_string()
            .contains("the kernel takes 4096")
    );
    // Jumps over more than 255 instructions.
    let fits = serde_json::from_value(json(900)).unwrap();
    agree(&fits, &[Architecture::X86_64], 20_000, &mut Random(3));
}

#[test]
fn a_stored_filter_is_the_same_and_a_changed_one_is_not_read() {
    let filter = compile_for(Architecture::X86_64, &container_profile()).unwrap();
    let bytes = filter.to_bytes();
    assert_eq!(
        Filter::from_bytes(&bytes).expect("intact").to_bytes(),
        bytes
    );
    for at in (0..bytes.len()).step_by(97) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(Filter::from_bytes(&changed).is_none(), "byte {at}");
    }
    for cut in [0, 1, 31, 32, 51, bytes.len() - 1] {
        assert!(Filter::from_bytes(&bytes[..cut]).is_none(), "cut at {cut}");
    }
}
