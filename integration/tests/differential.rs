//! Every file of every image, in every format, by both back ends, against an ordinary unpack by
//! containerd's overlayfs snapshotter: types, modes, owners, times, attributes, links, devices,
//! what layers hide, and contents.
//!
//! Small images are compared in each format and, layer for layer, in each depth of their chain. Of
//! the eight others four are, from number R on: image number i in format number i + R, by the kernel
//! where that sum is even, by FUSE otherwise. R is `XEBEC_DIFFERENTIAL`, 0 without it;
//! `XEBEC_DIFFERENTIAL=all` (`make differential`) compares all of them with all, and one file of
//! more than 4 GiB; `XEBEC_DIFFERENTIAL=redis,odd` compares these images with all.
//!
//! The root directory is not compared: containerd takes nothing of it from a layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use integration::corpus::{BYTES, HUGE, ODD, SPARSE, TIMES, TWICE, build_odd};
use integration::ctr::Ctr;
use integration::hosts::{HostOptions, NativeHost, Service};
use integration::listing::Listing;
use integration::{Error, Result};
use sha2::{Digest, Sha256};

const SMALL: [&str; 2] = ["busybox", ODD];
/// What no table of ours can hold, so that containerd has to unpack it.
const FALLING_BACK: [&str; 2] = [SPARSE, TWICE];
const LARGE: [&str; 8] = [
    "redis",
    "python3-numpy",
    "nginx",
    "openjdk",
    "nodejs",
    "ruby",
    "manyfiles",
    "pause",
];
const CRAFTED: [&str; 6] = [ODD, BYTES, SPARSE, TWICE, TIMES, HUGE];
/// How many large images a rotation has.
const TOGETHER: usize = 4;
/// Most that a conversion may take: 4 GiB by programs that are not optimized, beside other work.
const CONVERSION: Duration = Duration::from_mins(8);
/// Differences that are shown of one comparison.
const SHOWN: usize = 10;

/// How an image comes to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Estargz,
    ZstdChunked,
    /// zstd:chunked as skopeo writes it.
    Skopeo,
    Nydus,
    /// The layers as they are, with our own index.
    Index,
    /// The layers as they are, streamed into the store.
    Streamed,
    /// The layers as they are, unpacked by containerd into our snapshots.
    Off,
}

const FORMATS: [Format; 7] = [
    Format::Estargz,
    Format::ZstdChunked,
    Format::Skopeo,
    Format::Nydus,
    Format::Index,
    Format::Streamed,
    Format::Off,
];

impl Format {
    /// Puts the image into the registry in this format; its reference.
    fn convert(self, host: &NativeHost, image: &str) -> Result<String> {
        let run = |argv: &[&str]| match host.run_within(argv, CONVERSION)? {
            converted if converted.success() => Ok(()),
            converted => Err(Error::invalid("the conversion", converted.stderr)),
        };
        let ours = |to: &str| {
            let target = image.replace(":v1", &format!(":{to}"));
            let argv = ["image", "convert", "--to", to, image, &target];
            run(&[&["xebec-snapshotter"], &argv[..]].concat())?;
            Ok(target)
        };
        match self {
            Self::Estargz => ours("estargz"),
            Self::ZstdChunked => ours("zstd-chunked"),
            Self::Nydus => ours("nydus"),
            Self::Index => ours("index"),
            Self::Streamed | Self::Off => Ok(image.to_owned()),
            Self::Skopeo => {
                let target = image.replace(":v1", ":skopeo");
                let copy = format!(
                    "skopeo copy -q --src-tls-verify=false --dest-tls-verify=false \
                     --dest-compress-format zstd:chunked --dest-force-compress-format \
                     docker://{image} docker://{target}"
                );
                run(&["sh", "-ec", &copy])?;
                Ok(target)
            }
        }
    }

    /// What the snapshotter's configuration says of it.
    fn plain(self) -> &'static str {
        match self {
            Self::Off => "off",
            _ => "stream",
        }
    }
}

/// What is compared.
#[derive(Debug, Clone)]
enum Selection {
    All,
    Rotation(usize),
    /// These images, in every format, by both back ends.
    Images(String),
}

impl Selection {
    fn from_environment() -> Self {
        match std::env::var("XEBEC_DIFFERENTIAL") {
            Err(_) => Self::Rotation(0),
            Ok(text) if text == "all" => Self::All,
            Ok(text) => match text.parse() {
                Ok(number) => Self::Rotation(number),
                Err(_) => Self::Images(text),
            },
        }
    }

    fn images(&self, format: usize, mount: &str) -> Vec<&'static str> {
        let mut images = SMALL.to_vec();
        match self {
            Self::All => images.extend(LARGE.into_iter().chain([HUGE])),
            Self::Images(names) => {
                images.extend(LARGE.into_iter().chain([HUGE]));
                images.retain(|image| names.split(',').any(|name| name == *image));
            }
            Self::Rotation(by) => {
                let is_even = mount == "kernel";
                for number in (0..TOGETHER).map(|it| (by + it) % LARGE.len()) {
                    let sum = number + by;
                    if sum % FORMATS.len() == format && sum.is_multiple_of(2) == is_even {
                        images.push(LARGE[number]);
                    }
                }
            }
        }
        if FORMATS[format] == Format::Streamed {
            images.extend(FALLING_BACK);
        }
        if !matches!(FORMATS[format], Format::Estargz | Format::ZstdChunked) {
            images.push(BYTES);
        }
        images
    }
}

#[test]
fn a_rotation_has_four_large_images_and_all_of_them_have_every_image_in_every_format() {
    let large = |by, mount| {
        (0..FORMATS.len())
            .flat_map(|format| {
                let images = Selection::Rotation(by).images(format, mount);
                images.into_iter().map(move |image| (image, format, mount))
            })
            .filter(|(image, ..)| LARGE.contains(image))
            .collect::<Vec<_>>()
    };
    let mut seen = BTreeSet::new();
    for by in 0..LARGE.len() * FORMATS.len() {
        let rotation = [large(by, "kernel"), large(by, "fuse")].concat();
        let images: BTreeSet<_> = rotation.iter().map(|(image, ..)| image).collect();
        assert_eq!(
            (rotation.len(), images.len()),
            (TOGETHER, TOGETHER),
            "{rotation:?}"
        );
        seen.extend(rotation);
    }
    assert_eq!(seen.len(), LARGE.len() * FORMATS.len() * 2);
}

#[test]
fn every_image_in_every_format_is_by_the_kernel_what_an_unpack_is() {
    compare_all("kernel");
}

#[test]
fn every_image_in_every_format_is_by_fuse_what_an_unpack_is() {
    compare_all("fuse");
}

fn compare_all(mount: &str) {
    let selection = Selection::from_environment();
    let host = NativeHost::start(HostOptions::with(&[Service::Registry, Service::Containerd]));
    let host = host.expect("a native host starts");
    let mut unpacked = BTreeMap::new();
    let mut report = String::new();
    for (number, format) in FORMATS.into_iter().enumerate() {
        serve(&host, mount, format);
        for name in selection.images(number, mount) {
            let theirs = unpacked
                .entry(name)
                .or_insert_with(|| Unpacked::of(&host, name).expect("an ordinary unpack"));
            let start = std::time::Instant::now();
            let compared = compare(&host, theirs, format, mount);
            for line in compared.unwrap_or_else(|error| vec![error.to_string()]) {
                // A String takes everything.
                let _ = writeln!(report, "{name}, {format:?}, {mount}: {line}");
                eprintln!("{name}, {format:?}, {mount}: {line}");
            }
            let (files, seconds) = (theirs.files(), start.elapsed().as_secs_f32());
            eprintln!("{name}, {format:?}, {mount}: {files} files, {seconds:.1} s");
        }
    }
    assert!(report.is_empty(), "{report}");
    serve(&host, mount, Format::Streamed);
    keeps_times_that_containerd_cannot_set(&host);
}

/// The one deviation from an ordinary unpack, which gives such files the first second of 1970.
fn keeps_times_that_containerd_cannot_set(host: &NativeHost) {
    let image = push(host, TIMES).unwrap();
    Ctr::new(host).pull(&image, "xebec").unwrap();
    let listing = list_image(host, "xebec", &image).unwrap();
    for (name, time) in [
        ("before", "-86400.000000000"),
        ("before-with-part", "-2.750000000"),
        ("2300", "10413792000.000000000"),
    ] {
        let shown = listing.show(name).unwrap();
        assert!(shown.contains(&format!(" {time} ")), "{name}: {shown}");
    }
    Ctr::new(host)
        .check(&["images", "rm", "--sync", &image])
        .unwrap();
}

#[test]
fn what_no_table_can_hold_is_refused_by_its_name_and_nothing_is_written() {
    let host = NativeHost::start(HostOptions::bare()).expect("a native host starts");
    for (image, formats, says) in [
        (
            SPARSE,
            &["estargz", "zstd-chunked", "nydus", "index"][..],
            "GNUSparseFile.0/sparse",
        ),
        (BYTES, &["estargz", "zstd-chunked"], "is not UTF-8"),
        (TWICE, &["index"], "\"twice\": the name is there already"),
    ] {
        build_odd(image, &host.path(format!("/var/tmp/{image}"))).unwrap();
        let source = format!("oci:/var/tmp/{image}:{image}");
        for format in formats {
            let target = format!("oci:/var/tmp/out-{image}-{format}:x");
            let argv = [
                "xebec-snapshotter",
                "image",
                "convert",
                "--to",
                format,
                &source,
                &target,
            ];
            let refused = host.run(&argv).unwrap();
            assert_eq!(refused.status, 1, "{refused:?}");
            assert!(refused.stderr.contains(says), "{refused:?}");
            let index = format!("/var/tmp/out-{image}-{format}/index.json");
            let written = std::fs::read_to_string(host.path(index)).unwrap_or_default();
            assert!(!written.contains("sha256:"), "{written}");
        }
    }
}

/// Serves with an empty root of its own: nothing of another format is here already.
fn serve(host: &NativeHost, mount: &str, format: Format) {
    host.stop(Service::Snapshotter).unwrap();
    let config = format!(
        "mount = \"{mount}\"\nroot = \"/var/lib/xebec-snapshotter/{format:?}\"\n\
         [lazy]\nplain = \"{}\"\n",
        format.plain()
    );
    host.write_file("/etc/xebec/snapshotter.toml", config)
        .unwrap();
    host.start_services(&[Service::Snapshotter]).unwrap();
    // containerd connects again when its back-off is over.
    let connected = "for i in $(seq 100); do ctr snapshots --snapshotter xebec ls && exit; sleep 0.1; done; exit 1";
    host.check_sh(connected).unwrap();
}

/// An image as containerd unpacks it.
struct Unpacked {
    name: &'static str,
    image: String,
    chain: Vec<String>,
    /// The tree of each depth that is compared, by the count of layers.
    trees: BTreeMap<usize, Listing>,
}

impl Unpacked {
    fn of(host: &NativeHost, name: &'static str) -> Result<Self> {
        let image = push(host, name)?;
        Ctr::new(host).pull(&image, "overlayfs")?;
        let chain = chain(host, &image)?;
        let from = if LARGE.contains(&name) {
            chain.len()
        } else {
            1
        };
        let mut trees = BTreeMap::new();
        for depth in from..chain.len() {
            trees.insert(depth, list_snapshot(host, "overlayfs", &chain[depth - 1])?);
        }
        trees.insert(chain.len(), list_image(host, "overlayfs", &image)?);
        Ctr::new(host).check(&["images", "rm", "--sync", &image])?;
        Ok(Self {
            name,
            image,
            chain,
            trees,
        })
    }

    fn files(&self) -> usize {
        self.trees.values().map(Listing::len).sum()
    }
}

fn push(host: &NativeHost, name: &str) -> Result<String> {
    if !CRAFTED.contains(&name) {
        return host.push(name);
    }
    let image = format!("{}/{name}:v1", Service::REGISTRY);
    let layout = format!("/var/tmp/{name}");
    build_odd(name, &host.path(&layout))?;
    let copy =
        format!("skopeo copy -q --dest-tls-verify=false oci:{layout}:{name} docker://{image}");
    host.check_sh(&copy)?;
    Ok(image)
}

/// Chain IDs of an image's layers (OCI image specification, config, layer ChainID).
fn chain(host: &NativeHost, image: &str) -> Result<Vec<String>> {
    let script = format!(
        "skopeo inspect --config --tls-verify=false docker://{image} | jq -r '.rootfs.diff_ids[]'"
    );
    let diff_ids = host.check_sh(&script)?;
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids.lines() {
        chain.push(match chain.last() {
            None => diff_id.to_owned(),
            Some(below) => {
                let digest = Sha256::digest(format!("{below} {diff_id}"));
                digest.iter().fold("sha256:".to_owned(), |text, byte| {
                    format!("{text}{byte:02x}")
                })
            }
        });
    }
    assert!(!chain.is_empty(), "{image} has no layers");
    Ok(chain)
}

/// Lists what an image shows.
fn list_image(host: &NativeHost, snapshotter: &str, image: &str) -> Result<Listing> {
    let script = "mkdir -p /mnt/image; ctr images mount --snapshotter $0 $1 /mnt/image";
    let unmount = "ctr images unmount --rm --snapshotter $0 /mnt/image";
    listed(host, snapshotter, image, [script, unmount], "/mnt/image")
}

/// Lists what a committed snapshot shows: by a prepared one on top of it, because `ctr` does not
/// hold a view, so that containerd might collect it.
fn list_snapshot(host: &NativeHost, snapshotter: &str, chain_id: &str) -> Result<Listing> {
    let script = "mkdir -p /mnt/depth; ctr snapshots --snapshotter $0 prepare depth $1 > /dev/null
                  ctr snapshots --snapshotter $0 mounts /mnt/depth depth > /tmp/mount; sh -e /tmp/mount";
    let unmount = "umount /mnt/depth; ctr snapshots --snapshotter $0 rm depth";
    listed(host, snapshotter, chain_id, [script, unmount], "/mnt/depth")
}

fn listed(
    host: &NativeHost,
    snapshotter: &str,
    what: &str,
    [mount, unmount]: [&str; 2],
    target: &str,
) -> Result<Listing> {
    let run = |script| host.check(&["sh", "-ec", script, snapshotter, what]);
    run(mount)?;
    let listing = Listing::of(&host.path(target));
    run(unmount)?;
    let listing = listing?.without_root();
    assert!(!listing.is_empty(), "{snapshotter}, {what}: an empty tree");
    Ok(listing)
}

/// Pulls the image in a format, and says what is not as in the ordinary unpack.
fn compare(
    host: &NativeHost,
    theirs: &Unpacked,
    format: Format,
    mount: &str,
) -> Result<Vec<String>> {
    let image = format.convert(host, &theirs.image)?;
    Ctr::new(host).pull(&image, "xebec")?;
    let chain = chain(host, &image)?;
    let mut report = Vec::new();
    let lazy = lazy_layers(host)?;
    // skopeo's table, in JSON, has other names.
    let is_lost = format == Format::Skopeo && theirs.name == BYTES;
    let falls_back = format == Format::Off || FALLING_BACK.contains(&theirs.name) || is_lost;
    let expected = if falls_back { 0 } else { chain.len() };
    if lazy != expected {
        report.push(format!("{lazy} lazy layers of {expected}"));
    }
    for (&depth, theirs_at) in &theirs.trees {
        let ours = if depth == theirs.chain.len() {
            list_image(host, "xebec", &image)?
        } else if format == Format::Nydus {
            // Its layers are others than those of its source: it is compared as a whole.
            continue;
        } else {
            list_snapshot(host, "xebec", &chain[depth - 1])?
        };
        let differences = theirs_at.differences(&ours, SHOWN);
        report.extend(
            differences
                .iter()
                .map(|line| format!("{depth} layers: {line}")),
        );
    }
    if !falls_back {
        let log = host.log(Service::Snapshotter);
        assert!(log.contains(&format!("by=\"{mount}\"")), "{log}");
    }
    Ctr::new(host).check(&["images", "rm", "--sync", &image])?;
    Ok(report)
}

/// Layers that the daemon keeps lazily.
fn lazy_layers(host: &NativeHost) -> Result<usize> {
    let script =
        "xebec-snapshotter status --format json | jq '[.snapshots[] | select(.layer)] | length'";
    host.check_sh(script)?
        .trim()
        .parse::<usize>()
        .map_err(|error| Error::invalid("the count of lazy layers", error))
}
