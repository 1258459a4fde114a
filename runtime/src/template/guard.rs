//! What a program must not ask of memory that its clones share, as rules of a seccomp profile: it
//! is told that the kernel cannot do it, in place of being shown the template's bytes where there
//! should be zeroes. Pure.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::awareness::Annotations;

/// Advice that some programs take for a hint, and die of an error to: `DONTNEED`, `FREE`.
const HINTS: [u64; 2] = [4, 8];
/// Other advice after which private anonymous memory reads as zeroes, and a mapped file does not:
/// `REMOVE`, `DONTNEED_LOCKED`, `GUARD_INSTALL`.
const OTHERS: [u64; 3] = [9, 24, 102];
/// Which argument the advice is.
const ADVISERS: [(&str, usize); 2] = [("madvise", 2), ("process_madvise", 3)];
/// What has no answer that holds for mapped memory: growing it would show what is behind it in the
/// page file, and a ring takes advice without asking the filter.
const REFUSED: [(&str, i32); 2] = [("mremap", libc::ENOMEM), ("io_uring_setup", libc::ENOSYS)];

/// Annotation of a container that is to become a template for sharing.
const ANNOTATION: &str = "dev.xebec.clone.guard";

/// What becomes of advice to forget memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guard {
    /// It is an error, by which a program knows that it gets no zeroes.
    Refuse,
    /// It is no error, and has no effect: for programs that die of one, and count on no zeroes.
    Ignore,
}

impl Guard {
    /// The rules that annotations ask for.
    ///
    /// # Errors
    /// The value, if there are no such rules.
    pub(crate) fn of(annotations: &impl Annotations) -> Result<Option<Self>, String> {
        match annotations.value(ANNOTATION) {
            None | Some("false") => Ok(None),
            Some("true") => Ok(Some(Self::Refuse)),
            Some("ignore") => Ok(Some(Self::Ignore)),
            Some(other) => Err(format!(
                "{ANNOTATION}: {other:?} is not true, ignore or false"
            )),
        }
    }

    /// The profile of a container that is to become a template for sharing.
    pub(crate) fn guarded(self, profile: Option<&LinuxSeccomp>) -> LinuxSeccomp {
        let mut guarded = profile.cloned().unwrap_or_else(permissive);
        let mut rules = self.rules();
        for given in guarded.syscalls().iter().flatten() {
            rules.extend(behind_guard(given));
        }
        guarded.set_syscalls(Some(rules));
        guarded
    }

    fn rules(self) -> Vec<LinuxSyscall> {
        let refused = REFUSED.iter();
        let mut rules: Vec<_> = refused
            .map(|(name, errno)| rule(name, *errno, Vec::new()))
            .collect();
        for (name, index) in ADVISERS {
            let hint = match self {
                Self::Ignore => 0,
                Self::Refuse => libc::EINVAL,
            };
            for (advice, errno) in [(&HINTS[..], hint), (&OTHERS[..], libc::EINVAL)] {
                // Several conditions on one argument are alternatives.
                let advice = advice.iter().map(|advice| equals(index, *advice)).collect();
                rules.push(rule(name, errno, advice));
            }
        }
        rules
    }
}

/// A rule without a condition would decide before ours: for what ours are about it gets one that
/// always holds.
fn behind_guard(given: &LinuxSyscall) -> Vec<LinuxSyscall> {
    let advises = |name: &String| ADVISERS.iter().any(|(adviser, _)| name == adviser);
    if given.args().as_ref().is_some_and(|args| !args.is_empty()) {
        return vec![given.clone()];
    }
    let (ours, others): (Vec<_>, Vec<_>) = given.names().iter().cloned().partition(advises);
    let part = |names: Vec<String>, conditions| {
        let mut part = given.clone();
        part.set_names(names).set_args(conditions);
        part
    };
    let always = vec![condition(0, LinuxSeccompOperator::ScmpCmpGe, 0)];
    let mut parts = Vec::new();
    if !others.is_empty() {
        parts.push(part(others, given.args().clone()));
    }
    if !ours.is_empty() {
        parts.push(part(ours, Some(always)));
    }
    parts
}

/// Everything is allowed, to all programs of this machine.
fn permissive() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    let architectures = if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        Vec::new()
    };
    profile
        .set_default_action(LinuxSeccompAction::ScmpActAllow)
        .set_architectures(Some(architectures));
    profile
}

fn rule(name: &str, errno: i32, conditions: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(vec![name.to_owned()])
        .set_action(LinuxSeccompAction::ScmpActErrno)
        .set_errno_ret(Some(errno as u32))
        .set_args(Some(conditions).filter(|list| !list.is_empty()));
    rule
}

fn equals(index: usize, value: u64) -> LinuxSeccompArg {
    condition(index, LinuxSeccompOperator::ScmpCmpEq, value)
}

fn condition(index: usize, op: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(op)
        .value(value)
        .build()
        .expect("every field is set")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &LinuxSeccomp) -> Vec<(Vec<String>, usize)> {
        let rules = profile.syscalls().iter().flatten();
        rules
            .map(|rule| (rule.names().clone(), rule.args().iter().flatten().count()))
            .collect()
    }

    #[test]
    fn what_a_profile_allows_is_allowed_but_for_the_advice() {
        let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["read", "madvise", "mremap"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
            ],
        }))
        .expect("a profile");
        let guarded = Guard::Refuse.guarded(Some(&profile));
        let rule = |names: &[&str], conditions| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            (names, conditions)
        };
        assert_eq!(
            names(&guarded),
            [
                rule(&["mremap"], 0),
                rule(&["io_uring_setup"], 0),
                rule(&["madvise"], HINTS.len()),
                rule(&["madvise"], OTHERS.len()),
                rule(&["process_madvise"], HINTS.len()),
                rule(&["process_madvise"], OTHERS.len()),
                rule(&["read", "mremap"], 0),
                rule(&["madvise"], 1),
                rule(&["personality"], 1),
            ]
        );
        crate::seccomp::compile(&guarded).expect("it compiles");
    }

    #[test]
    fn without_a_profile_everything_else_is_allowed() {
        for guard in [Guard::Refuse, Guard::Ignore] {
            let guarded = guard.guarded(None);
            assert_eq!(guarded.default_action(), LinuxSeccompAction::ScmpActAllow);
            crate::seccomp::compile(&guarded).expect("it compiles");
        }
    }

    #[test]
    fn advice_that_is_ignored_succeeds_and_all_other_is_refused() {
        let errors = |guard: Guard| {
            let rules = guard.rules();
            let advice = rules.iter().filter(|rule| rule.names() == &["madvise"]);
            let errors = advice.map(LinuxSyscall::errno_ret);
            errors.collect::<Vec<_>>()
        };
        let refused = Some(libc::EINVAL as u32);
        assert_eq!(errors(Guard::Refuse), [refused, refused]);
        assert_eq!(errors(Guard::Ignore), [Some(0), refused]);
    }

    #[test]
    fn a_guard_that_there_is_not_is_refused() {
        let of = |text: &str| {
            let annotations = [(ANNOTATION.to_owned(), text.to_owned())];
            Guard::of(&std::collections::BTreeMap::from(annotations))
        };
        assert_eq!(of("true"), Ok(Some(Guard::Refuse)));
        assert_eq!(of("ignore"), Ok(Some(Guard::Ignore)));
        assert_eq!(of("false"), Ok(None));
        assert!(of("yes").expect_err("refused").contains("\"yes\""));
    }
}
