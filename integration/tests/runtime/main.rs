//! The runtime by its own command line, as a person or another engine would use it.
//!
//! One story a file; this one holds what all of them use.

mod adversity;
mod allocators;
mod attacks;
mod attacks_mounts;
mod cgroups;
mod checkpoint;
mod cli;
mod clients;
mod compat;
mod crashes;
mod filled;
mod hooks;
mod kept;
mod lifecycle;
mod mounts;
mod process;
mod refused;
mod registry;
mod rootfs;
mod rootless;
mod sealed;
mod seccomp;
mod served;
mod template;
mod terminal;
mod users;

use integration::Result;
use integration::bundle::Bundle;
use integration::command::Output;
use integration::hosts::{HostOptions, NativeHost};
use integration::leftovers::Inventory;
use serde_json::Value;

/// Every kind of hook, in the order of their lives.
const HOOK_KINDS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

fn host() -> NativeHost {
    NativeHost::start(HostOptions::bare()).expect("a native host starts")
}

fn xebec(host: &NativeHost, arguments: &[&str]) -> Result<Output> {
    let mut argv = vec!["xebec"];
    argv.extend(arguments);
    host.run(&argv)
}

/// Runs a command that has to succeed and says what it wrote when it does not.
#[track_caller]
fn ok(host: &NativeHost, arguments: &[&str]) -> String {
    let output = xebec(host, arguments).expect("xebec runs");
    assert!(output.success(), "xebec {arguments:?}: {output:?}");
    output.stdout
}

fn state(host: &NativeHost, id: &str) -> Value {
    serde_json::from_str(&ok(host, &["state", id])).expect("the state is JSON")
}

/// An inventory after one container has come and gone, so that caches are there already.
fn settled(host: &NativeHost, bundle: &Bundle<'_>) -> Inventory {
    ok(host, &["run", "--bundle", bundle.path(), "warm-up"]);
    Inventory::of(host).expect("an inventory")
}

#[track_caller]
fn assert_restored(host: &NativeHost, before: &Inventory) {
    let left = before.wait_until_restored(host).expect("an inventory");
    assert!(left.is_empty(), "left over: {left:#?}");
}
