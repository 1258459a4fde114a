//! An image in eStargz form, and a server on loopback from which its blobs can be read in ranges.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use xebec_snapshotter::digest::Digest;

/// The files of one layer; an empty content under a name that ends in `/` makes a directory.
pub(crate) type Files<'a> = &'a [(&'a str, &'a [u8])];

/// A layer of the converted image, with the labels that containerd would give its snapshot.
pub(crate) struct Layer {
    pub(crate) chain_id: String,
    pub(crate) size: u64,
    pub(crate) digest: String,
    toc_digest: String,
}

/// The image and its server; both go with this.
pub(crate) struct Image {
    dir: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) layers: Vec<Layer>,
    served: Arc<AtomicU64>,
    manner: Arc<Manner>,
}

/// How the server answers.
#[derive(Default)]
struct Manner {
    /// In milliseconds.
    delay: AtomicU64,
    hangs_up: AtomicBool,
}

impl Image {
    /// Builds an image of `layers`, converts it and serves it.
    pub(crate) fn serve(layers: &[Files<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (plain, lazy) = (dir.path().join("plain"), dir.path().join("lazy"));
        write_layout(&plain, layers);
        let output = Command::new(env!("CARGO_BIN_EXE_xebec-snapshotter"))
            .args(["image", "convert"])
            .arg(format!("oci:{}:i", plain.display()))
            .arg(format!("oci:{}:i", lazy.display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let layers = read_layers(&lazy);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&served);
        let manner = Arc::<Manner>::default();
        let how = Arc::clone(&manner);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (blobs, count) = (lazy.join("blobs/sha256"), Arc::clone(&count));
                let how = Arc::clone(&how);
                std::thread::spawn(move || answer(&stream.unwrap(), &blobs, &count, &how));
            }
        });
        Self {
            dir,
            address,
            layers,
            served,
            manner,
        }
    }

    /// Every answer is late by this time from now on.
    pub(crate) fn delay(&self, time: Duration) {
        let time = time.as_millis() as u64;
        self.manner.delay.store(time, Ordering::SeqCst);
    }

    /// Every request is answered by the end of its connection from now on.
    pub(crate) fn hang_up(&self) {
        self.manner.hangs_up.store(true, Ordering::SeqCst);
    }

    /// Where a layer's blob lies on the server's disk.
    pub(crate) fn blob(&self, n: usize) -> PathBuf {
        let digest: Digest = self.layers[n].digest.parse().unwrap();
        let dir = self.dir.path().join("lazy/blobs/sha256");
        dir.join(digest.hex())
    }

    /// Blob bytes that were sent so far.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// The labels of a `Prepare` for layer `n`.
    pub(crate) fn labels(&self, n: usize) -> BTreeMap<&'static str, String> {
        let layer = &self.layers[n];
        BTreeMap::from([
            ("containerd.io/snapshot.ref", layer.chain_id.clone()),
            (
                "containerd.io/snapshot/cri.image-ref",
                format!("{}/image:tag", self.address),
            ),
            (
                "containerd.io/snapshot/cri.layer-digest",
                layer.digest.clone(),
            ),
            (
                "containerd.io/snapshot/stargz/toc.digest",
                layer.toc_digest.clone(),
            ),
        ])
    }
}

fn write_layout(dir: &Path, layers: &[Files<'_>]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    };
    let tars: Vec<Vec<u8>> = layers.iter().map(|files| tar(files)).collect();
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let descriptors: Vec<Value> = tars
        .iter()
        .map(|tar| put("application/vnd.oci.image.layer.v1.tar", tar))
        .collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": descriptors,
    });
    let mut manifest = put(media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "i"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn tar(files: Files<'_>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        let directory = name.ends_with('/');
        header.set_entry_type(if directory {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        });
        header.set_mode(if directory { 0o755 } else { 0o644 });
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn read_layers(dir: &Path) -> Vec<Layer> {
    let blob = |descriptor: &Value| -> Value {
        let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
        let bytes = fs::read(dir.join("blobs/sha256").join(digest.hex())).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    let manifest = blob(&index["manifests"][0]);
    let config = blob(&manifest["config"]);
    let mut chain_id = String::new();
    let layers = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(n, layer)| {
            let diff_id = config["rootfs"]["diff_ids"][n].as_str().unwrap();
            chain_id = match chain_id.as_str() {
                "" => diff_id.to_owned(),
                below => Digest::of(format!("{below} {diff_id}").as_bytes()).to_string(),
            };
            Layer {
                chain_id: chain_id.clone(),
                size: layer["size"].as_u64().unwrap(),
                digest: layer["digest"].as_str().unwrap().to_owned(),
                toc_digest: layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            }
        });
    layers.collect()
}

/// Answers requests on one connection: `HEAD` and `GET` of blobs, whole or one range.
fn answer(stream: &TcpStream, blobs: &Path, served: &AtomicU64, manner: &Manner) {
    let mut reader = BufReader::new(stream);
    while let Some((method, path, range)) = request(&mut reader) {
        let delay = manner.delay.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(delay));
        if manner.hangs_up.load(Ordering::SeqCst) {
            return;
        }
        let path = path.split('?').next().unwrap_or_default();
        let name = path.rsplit_once("sha256:").map_or("", |(_, name)| name);
        let file: Option<PathBuf> = Some(blobs.join(name)).filter(|path| path.is_file());
        let Some(file) = file else {
            let _ = write!(
                &*stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            );
            continue;
        };
        let file = fs::File::open(file).unwrap();
        let size = file.metadata().unwrap().len();
        let (status, start, end) = match range {
            Some((start, end)) => ("206 Partial Content", start, end.min(size - 1)),
            None => ("200 OK", 0, size - 1),
        };
        let mut body = vec![0; (end + 1 - start) as usize];
        file.read_exact_at(&mut body, start).unwrap();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{end}/{size}\r\n\
             Accept-Ranges: bytes\r\nDocker-Content-Digest: sha256:{name}\r\n\r\n",
            body.len()
        );
        if method == "HEAD" {
            body.clear();
        }
        served.fetch_add(body.len() as u64, Ordering::SeqCst);
        let mut stream = stream;
        if stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&body))
            .is_err()
        {
            return;
        }
    }
}

type Range = Option<(u64, u64)>;

fn request(reader: &mut impl BufRead) -> Option<(String, String, Range)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut range = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            return Some((method, path, range));
        }
        if let Some(bytes) = header.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (start, end) = bytes.trim().split_once('-')?;
            range = Some((start.parse().ok()?, end.parse().ok()?));
        }
    }
}
