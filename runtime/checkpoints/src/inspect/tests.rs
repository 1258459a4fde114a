use std::fs;
use std::path::Path;

use xebec_proto::criu_images::{
    AreaEntry, CoreEntry, Credentials, DescriptorEntry, FileEntry, InventoryEntry, MemoryEntry,
    MountEntry, NamespaceIds, PagemapEntry, PagemapHead, RegularFile, TaskCore, ThreadCore,
    TreeEntry,
};

use super::*;
use crate::archive::{Compression, Packer};
use crate::images::PAGEMAP;
use crate::images::forge::image;

/// The images of one process with two pages, of which the second has arguments and environment.
fn write_images(directory: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes).expect("written");
    let inventory = InventoryEntry {
        img_version: 1,
        ..InventoryEntry::default()
    };
    write("inventory.img", &image(&INVENTORY, &[&inventory]));
    let init = TreeEntry {
        pid: 1,
        ppid: 0,
        threads: vec![1, 7],
    };
    write("pstree.img", &image(&PSTREE, &[&init]));
    write("core-1.img", &image(&CORE, &[&core()]));
    let ids = NamespaceIds {
        files_id: Some(2),
        ..NamespaceIds::default()
    };
    write("ids-1.img", &image(&IDS, &[&ids]));
    let descriptor = DescriptorEntry {
        id: 5,
        r#type: 1,
        fd: 3,
        ..DescriptorEntry::default()
    };
    write("fdinfo-2.img", &image(&FDINFO, &[&descriptor]));
    let file = FileEntry {
        r#type: 1,
        id: 5,
        reg: Some(RegularFile {
            id: 5,
            name: "/data/file".to_owned(),
            ..RegularFile::default()
        }),
        ..FileEntry::default()
    };
    write("files.img", &image(&FILES, &[&file]));
    let mount = MountEntry {
        mountpoint: "/data".to_owned(),
        ext_key: Some("/data".to_owned()),
        ..MountEntry::default()
    };
    write("mountpoints-9.img", &image(&MOUNTS, &[&mount]));
    write_memory(directory);
}

fn core() -> CoreEntry {
    CoreEntry {
        tc: Some(TaskCore {
            task_state: 1,
            comm: "server".to_owned(),
        }),
        thread_core: Some(ThreadCore {
            creds: Some(Credentials {
                uid: 33,
                gid: 44,
                ..Credentials::default()
            }),
            ..ThreadCore::default()
        }),
        ..CoreEntry::default()
    }
}

fn write_memory(directory: &Path) {
    let text = b"server\0--port=80\0A=b\0API_TOKEN=hush\0";
    let arguments = 17;
    let memory = MemoryEntry {
        mm_arg_start: 0x5000,
        mm_arg_end: 0x5000 + arguments,
        mm_env_start: 0x5000 + arguments,
        mm_env_end: 0x5000 + text.len() as u64,
        vmas: vec![AreaEntry {
            start: 0x1000,
            end: 0x9000,
            status: 1 << 9,
            ..AreaEntry::default()
        }],
        ..MemoryEntry::default()
    };
    let write = |name: &str, bytes: &[u8]| fs::write(directory.join(name), bytes).expect("written");
    write("mm-1.img", &image(&MM, &[&memory]));
    let page = |vaddr| PagemapEntry {
        vaddr,
        flags: Some(4),
        nr_pages: Some(1),
        ..PagemapEntry::default()
    };
    let head = PagemapHead { pages_id: 1 };
    write(
        "pagemap-1.img",
        &image(&PAGEMAP, &[&head, &page(0x2000), &page(0x5000)]),
    );
    let mut pages = vec![0; 8192];
    pages[4096..4096 + text.len()].copy_from_slice(text);
    write("pages-1.img", &pages);
}

#[track_caller]
fn assert_told(report: &Report) {
    let [process] = report.processes.as_slice() else {
        panic!("one process: {report:?}");
    };
    assert_eq!(process.name, "server");
    assert_eq!(process.arguments, ["server", "--port=80"]);
    assert_eq!(process.environment, ["A=b", "API_TOKEN=***"]);
    assert_eq!((process.threads, process.user), (2, [33, 44]));
    let size = process.memory.anonymous;
    assert_eq!((size.mapped, size.stored), (0x8000, 0x2000));
    assert_eq!(process.files[0].path, "/data/file");
    assert_eq!(report.mounts[0].external.as_deref(), Some("/data"));
    assert_eq!(report.sizes.pages, 8192);
}

#[test]
fn an_archive_a_directory_and_bare_images_tell_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let images = directory.path().join("x/checkpoint");
    fs::create_dir_all(&images).expect("made");
    write_images(&images);
    let archive = directory.path().join("a.tar");
    let mut packer = Packer::new(Vec::new(), Compression::Zstd).expect("a packer");
    packer
        .add_path(Path::new(CHECKPOINT), &images)
        .expect("added");
    packer
        .add_bytes(
            "config.dump",
            br#"{"id": "x", "rootfsImageName": "img", "spec": {}}"#,
        )
        .expect("added");
    fs::write(&archive, packer.finish().expect("an archive")).expect("written");
    for path in [&archive, &directory.path().join("x"), &images] {
        let report = inspect(&mut Files::open(path).expect("opened")).expect("inspected");
        assert_told(&report);
    }
    let report = inspect(&mut Files::open(&archive).expect("opened")).expect("inspected");
    assert_eq!(
        report
            .container
            .as_ref()
            .map(|one| one.rootfs_image_name.as_str()),
        Some("img")
    );
    let text = to_text(&report);
    for words in [
        "1 server (33:44) server --port=80",
        "API_TOKEN=***",
        "/data/file",
        "the host's",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_tree_that_would_never_end_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    write_images(directory.path());
    let init = TreeEntry {
        pid: 1,
        ppid: 0,
        threads: vec![],
    };
    fs::write(
        directory.path().join("pstree.img"),
        image(&PSTREE, &[&init, &init]),
    )
    .expect("written");
    let error = inspect(&mut Files::open(directory.path()).expect("opened")).expect_err("refused");
    assert!(
        error.to_string().contains("process 1: it is there twice"),
        "{error}"
    );
}

#[test]
fn what_a_checkpoint_says_cannot_command_a_terminal() {
    let directory = tempfile::tempdir().expect("a directory");
    write_images(directory.path());
    let mut forged = core();
    forged.tc = Some(TaskCore {
        task_state: 1,
        comm: "\u{1b}[2J\nEngine".to_owned(),
    });
    fs::write(
        directory.path().join("core-1.img"),
        image(&CORE, &[&forged]),
    )
    .expect("written");
    let report = inspect(&mut Files::open(directory.path()).expect("opened")).expect("inspected");
    let text = to_text(&report);
    assert!(!text.contains('\u{1b}'), "{text}");
}
