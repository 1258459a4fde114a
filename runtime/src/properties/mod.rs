//! The way from `config.json` to a launch plan, whatever the document: no panic, and every refusal
//! names its field.

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseResult};
use serde_json::{Value, json};

use crate::cgroup::{ResourcePlan, devices};
use crate::error::{Error, Result};
use crate::plan::{LaunchPlan, PlanContext, ResctrlPlan};
use crate::seccomp;
use crate::spec::{check_spec, parse_config, spec_template};

const FILE: &str = "config.json";
const FULL: &str = include_str!("full.json");

/// Everything that is made of a configuration before anything of the host is looked at.
fn plan(text: &[u8]) -> Result<()> {
    let file = Path::new(FILE);
    let (spec, _) = parse_config(file, text)?;
    let namespaces = check_spec(file, &spec)?;
    let refuse = |e: crate::plan::FieldError| Error::Spec {
        file: FILE.to_owned(),
        field: e.field,
        reason: e.reason,
    };
    let context = PlanContext {
        id: &"box".parse()?,
        bundle: Path::new("/bundles/box"),
        cgroup_path: Path::new("/sys/fs/cgroup/box"),
        cgroup_mount: Path::new("/sys/fs/cgroup"),
        no_pivot: false,
        no_new_keyring: false,
        in_user_namespace: false,
        enters_mounts: true,
    };
    LaunchPlan::new(&spec, namespaces, context).map_err(refuse)?;
    let linux = spec.linux().as_ref();
    if let Some(rdt) = linux.and_then(|linux| linux.intel_rdt().as_ref()) {
        ResctrlPlan::from_spec(rdt).map_err(refuse)?;
    }
    let none = LinuxResources::default();
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let resources = resources.unwrap_or(&none);
    ResourcePlan::from_spec(resources)?;
    devices::compile(resources.devices().as_deref().unwrap_or_default())?;
    if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref()) {
        seccomp::compile(profile)?;
    }
    Ok(())
}

/// What every document has to lead to: a plan, or an error that says where to look.
fn is_planned_or_named(text: &[u8]) -> TestCaseResult {
    let named = match plan(text) {
        Ok(()) => return Ok(()),
        Err(Error::Spec { file, field, .. }) => file == FILE && !field.is_empty(),
        Err(error) => error.to_string().starts_with("linux."),
    };
    prop_assert!(named, "{:?}", plan(text));
    Ok(())
}

/// JSON pointers of every value inside `document`.
fn places(document: &Value) -> Vec<String> {
    fn collect(value: &Value, at: &str, places: &mut Vec<String>) {
        let mut enter = |key: &str, inner: &Value| {
            let key = key.replace('~', "~0").replace('/', "~1");
            let place = format!("{at}/{key}");
            collect(inner, &place, places);
            places.push(place);
        };
        match value {
            Value::Object(members) => members.iter().for_each(|(key, inner)| enter(key, inner)),
            Value::Array(items) => {
                for (index, inner) in items.iter().enumerate() {
                    enter(&index.to_string(), inner);
                }
            }
            _ => {}
        }
    }
    let mut places = Vec::new();
    collect(document, "", &mut places);
    places
}

#[derive(Clone, Debug)]
enum Change {
    Replace(Value),
    /// By the value of another place.
    Copy(Index),
    Remove,
    Repeat,
}

impl Change {
    fn apply(self, document: &mut Value, place: Index) {
        let places = places(document);
        if places.is_empty() {
            return;
        }
        let at = place.get(&places);
        let (parent, key) = at.rsplit_once('/').unwrap_or_default();
        match self {
            Self::Replace(value) => *document.pointer_mut(at).expect("a place") = value,
            Self::Copy(from) => {
                let value = document.pointer(from.get(&places).as_str()).cloned();
                *document.pointer_mut(at).expect("a place") = value.expect("a place");
            }
            Self::Remove => match document.pointer_mut(parent) {
                Some(Value::Object(members)) => drop(members.remove(key)),
                Some(Value::Array(items)) => drop(items.pop()),
                _ => {}
            },
            Self::Repeat => {
                if let Some(Value::Array(items)) = document.pointer_mut(parent) {
                    items.extend(items.last().cloned());
                }
            }
        }
    }
}

/// Values at the edges of what fields take.
fn edge() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(|number| json!(number)),
        any::<String>().prop_map(|text| json!(text)),
        proptest::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(1.5),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(u32::MAX),
            json!(1_u64 << 32),
            json!(""),
            json!("/"),
            json!(".."),
            json!("../../etc"),
            json!("a\u{0}b"),
            json!("x".repeat(5000)),
            json!("0-4294967296"),
            json!([]),
            json!({}),
            json!([""]),
        ]),
    ]
}

fn mutated() -> impl Strategy<Value = Value> {
    let templates = [FULL.to_owned(), spec_template(false), spec_template(true)];
    let originals: Vec<Value> = templates
        .iter()
        .map(|text| serde_json::from_str(text).expect("JSON"))
        .collect();
    let change = prop_oneof![
        4 => edge().prop_map(Change::Replace),
        1 => any::<Index>().prop_map(Change::Copy),
        1 => Just(Change::Remove),
        1 => Just(Change::Repeat),
    ];
    let changes = vec((any::<Index>(), change), 1..3);
    (proptest::sample::select(originals), changes).prop_map(|(mut document, changes)| {
        for (place, change) in changes {
            change.apply(&mut document, place);
        }
        document
    })
}

/// Any JSON whatsoever.
fn any_json() -> impl Strategy<Value = Value> {
    edge().prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec(("[a-z]{1,9}|linux|process|root|mounts|hooks", inner), 0..6)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

fn config(cases: u32) -> Config {
    Config {
        cases,
        // What is found becomes a test of its own.
        failure_persistence: None,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn a_changed_configuration_is_planned_or_its_field_named(document in mutated()) {
        is_planned_or_named(document.to_string().as_bytes())?;
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn any_json_is_planned_or_its_field_named(document in any_json()) {
        is_planned_or_named(document.to_string().as_bytes())?;
    }

    #[test]
    fn damaged_text_is_planned_or_its_place_named(
        at in any::<Index>(), byte in any::<u8>(), cut in any::<bool>()
    ) {
        let mut text = FULL.as_bytes().to_vec();
        let at = at.index(text.len());
        text[at] = byte;
        if cut {
            text.truncate(at);
        }
        is_planned_or_named(&text)?;
    }
}

#[test]
fn a_configuration_with_every_field_is_planned() {
    plan(FULL.as_bytes()).expect("a valid configuration");
    for rootless in [false, true] {
        plan(spec_template(rootless).as_bytes()).expect("a valid configuration");
    }
}
