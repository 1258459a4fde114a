//! The machine itself: what becomes of one whose kernel dies.

use integration::hosts::{VmHost, VmOptions};

#[test]
fn a_kernel_that_dies_at_each_boot_is_an_error_with_its_last_words() {
    let options = VmOptions {
        services: Vec::new(),
        kernel: vec!["root=/dev/none".to_owned()],
        ..VmOptions::default()
    };
    let error = VmHost::run(options, &["true"]).unwrap_err().to_string();
    assert!(error.contains("it ended before its job did"), "{error}");
    assert!(error.contains("Unable to mount root fs"), "{error}");
}
