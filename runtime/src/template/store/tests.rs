use std::os::unix::fs::PermissionsExt as _;

use oci_spec::runtime::Spec;

use super::*;
use crate::template::record::VERSION;

fn name(text: &str) -> ContainerId {
    text.parse().expect("a name")
}

/// Fills a template with an image and a page file.
fn fill(dir: &TemplateDir, called: &str) -> Result<Template> {
    let images = dir.images(MemoryMode::Share);
    fs::create_dir(&images).expect("made");
    fs::write(images.join("core-1.img"), "core").expect("written");
    fs::write(dir.page_file(), "pages").expect("written");
    Ok(Template {
        version: VERSION,
        name: name(called),
        created: String::new(),
        bundle: PathBuf::from("/b"),
        modes: vec![MemoryMode::Share],
        guarded: false,
        own_memory: 0,
        shared_memory: 5,
        hot_memory: 0,
        ext_unix_sk: false,
        file_locks: false,
        filesystems: Vec::new(),
        files: dir.facts(MemoryMode::Share)?.into_iter().collect(),
        config: Spec::default(),
    })
}

fn store() -> (tempfile::TempDir, Templates) {
    let root = tempfile::tempdir().expect("temporary directory");
    let store = Templates::new(root.path().join("templates"));
    (root, store)
}

#[test]
fn a_template_is_there_whole_or_not_at_all() {
    let (root, store) = store();
    let failed = store.create(&name("t"), |_| Err(Error::NotRunning));
    assert!(matches!(failed, Err(Error::NotRunning)));
    assert_eq!(
        names(&root.path().join("templates")).expect("read"),
        [""; 0]
    );
    store
        .create(&name("t"), |dir| fill(dir, "t"))
        .expect("made");
    let again = store
        .create(&name("t"), |dir| fill(dir, "t"))
        .expect_err("there is one");
    assert!(again.to_string().contains("exists already"), "{again}");
    let (found, damaged) = store.list().expect("listed");
    assert_eq!((found.len(), damaged.len()), (1, 0));
    store.remove(&name("t")).expect("removed");
    let gone = store.open(&name("t")).map(|_| ()).expect_err("gone");
    assert!(gone.to_string().contains("does not exist"), "{gone}");
    assert!(store.remove(&name("t")).is_err());
}

#[test]
fn what_a_killed_maker_or_remover_left_is_in_nobodys_way() {
    let (root, store) = store();
    let root = root.path().join("templates");
    for left in ["@new-t/eager", "@old-t/eager"] {
        fs::create_dir_all(root.join(left)).expect("made");
    }
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).expect("changed");
    store
        .create(&name("t"), |dir| fill(dir, "t"))
        .expect("made");
    store.remove(&name("t")).expect("removed");
    assert_eq!(names(&root).expect("read"), [""; 0]);
}

#[test]
fn a_file_that_is_not_as_it_was_is_named() {
    let (_root, store) = store();
    store
        .create(&name("t"), |dir| fill(dir, "t"))
        .expect("made");
    let (dir, record) = store.open(&name("t")).expect("there");
    let verify = |thorough| dir.verify(&record, MemoryMode::Share, thorough);
    verify(true).expect("whole");
    let image = dir.images(MemoryMode::Share).join("core-1.img");
    let refused = |thorough, words: &str| {
        let error = verify(thorough).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    fs::write(&image, "bore").expect("written");
    refused(false, "share/core-1.img has other content");
    fs::write(&image, "more than that").expect("written");
    refused(false, "share/core-1.img has another size");
    fs::rename(&image, image.with_file_name("x")).expect("renamed");
    refused(false, "share/core-1.img is missing");
    fs::write(&image, "core").expect("written");
    refused(false, "share/x is not the template's");
    fs::remove_file(image.with_file_name("x")).expect("removed");
    fs::write(dir.page_file(), "paged").expect("written");
    verify(false).expect("of its pages only the size is looked at");
    refused(true, "/pages has other content");
}

#[test]
fn a_directory_that_others_can_write_to_is_not_trusted() {
    let (_root, store) = store();
    store
        .create(&name("t"), |dir| fill(dir, "t"))
        .expect("made");
    let (dir, _) = store.open(&name("t")).expect("there");
    fs::set_permissions(&dir.path, fs::Permissions::from_mode(0o770)).expect("changed");
    let error = store.open(&name("t")).map(|_| ()).expect_err("refused");
    assert!(error.to_string().contains("could be trusted"), "{error}");
}

#[test]
fn no_two_clones_have_one_number() {
    let (_root, store) = store();
    store
        .create(&name("t"), |dir| fill(dir, "t"))
        .expect("made");
    let (dir, _) = store.open(&name("t")).expect("there");
    let counted = std::thread::scope(|scope| {
        let count = || {
            (0..50)
                .map(|_| dir.next_generation().expect("counted"))
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
        let all = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("counted"));
        all.collect::<std::collections::BTreeSet<_>>()
    });
    assert_eq!(counted, (1..=200).collect());
}
