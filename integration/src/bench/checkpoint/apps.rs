//! What is checkpointed: three servers, each in a bundle of its own.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::bundle::containerd_spec;
use super::super::measure::output;
use super::network::{Network, PORT};
use crate::error::{Error, Result};

/// The program of `integration/programs`, where a native host has the product's binaries.
const SERVER: &str = "/opt/xebec/bench-server";

const PYTHON_IMAGE: &str = "python3-numpy";
const NODE_IMAGE: &str = "nodejs";
/// Images of the corpus that the servers live in.
pub(in super::super) const IMAGES: &[&str] = &[PYTHON_IMAGE, NODE_IMAGE];

/// Python: numpy loaded, and a table of 16 MB to answer from.
const PYTHON: &str = r#"
import numpy
from http.server import BaseHTTPRequestHandler, HTTPServer
table = numpy.arange(2_000_000, dtype=numpy.float64)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(table.sum()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
HTTPServer(("0.0.0.0", PORT), Handler).serve_forever()
"#;

/// Node: 300 MB of objects, of which an answer looks at one.
const NODE: &str = r#"
const heap = [];
while (process.memoryUsage().heapUsed < 300 << 20)
  for (let n = 0; n < 20000; n++)
    heap.push({ id: heap.length, name: `entry ${heap.length}`, tags: [n, n + 1], next: heap.at(-1) });
require("http").createServer((request, response) => {
  const body = heap[heap.length >> 1].name;
  response.writeHead(200, { "Content-Length": body.length, Connection: "close" });
  response.end(body);
}).listen(PORT);
"#;

/// A server that competes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum App {
    /// A small static program.
    Static,
    /// CPython with numpy.
    Python,
    /// Node with a heap of 300 MB.
    Node,
}

/// In the order of the table.
pub(super) const APPS: [App; 3] = [App::Static, App::Python, App::Node];

impl App {
    /// Its name in rows and paths.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Python => "python",
            Self::Node => "node",
        }
    }

    /// Makes its root file system: that of an image of the corpus, and what is served.
    fn install(self, rootfs: &Path) -> Result<()> {
        let (image, file, script) = match self {
            Self::Static => {
                make_directories(rootfs)?;
                let program = rootfs.join("server");
                return fs::copy(SERVER, &program)
                    .map(drop)
                    .map_err(Error::file("copy a server to", &program));
            }
            Self::Python => (PYTHON_IMAGE, "server.py", PYTHON),
            Self::Node => (NODE_IMAGE, "server.js", NODE),
        };
        let source = format!("/srv/corpus/{image}:{image}");
        output(&["umoci", "raw", "unpack", "--image", &source, &text(rootfs)])?;
        make_directories(rootfs)?;
        let file = rootfs.join(file);
        let script = script.replace("PORT", &PORT.to_string());
        fs::write(&file, script).map_err(Error::file("write", &file))
    }

    fn command(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Static => return vec!["/server".to_owned(), PORT.to_string()],
            Self::Python => &["/usr/bin/python3", "/server.py"],
            Self::Node => &["/usr/bin/node", "--max-old-space-size=1024", "/server.js"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// Where containerd's spec has mounts.
fn make_directories(rootfs: &Path) -> Result<()> {
    for directory in ["proc", "sys", "dev", "run", "tmp", "etc"] {
        let directory = rootfs.join(directory);
        fs::create_dir_all(&directory).map_err(Error::file("create", &directory))?;
    }
    Ok(())
}

/// Makes the bundle of an app below `directory`, with containerd's default spec, in a network that
/// is there before and after it; its path.
pub(super) fn make_bundle(app: App, directory: &Path, network: &Network) -> Result<PathBuf> {
    make(app, &directory.join(app.name()), Some(network.path()))
}

/// The same in a network of its own.
pub(super) fn make_bundle_apart(app: App, directory: &Path) -> Result<PathBuf> {
    make(app, &directory.join(format!("{}-apart", app.name())), None)
}

fn make(app: App, bundle: &Path, network: Option<&str>) -> Result<PathBuf> {
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(bundle).map_err(Error::file("create", bundle))?;
    app.install(&rootfs)?;
    let mut spec = containerd_spec(&rootfs)?;
    spec["process"]["args"] = json!(app.command());
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(match network {
            Some(path) => json!({"type": "network", "path": path}),
            None => json!({"type": "network"}),
        });
    }
    let file = bundle.join("config.json");
    fs::write(&file, spec.to_string()).map_err(Error::file("write", &file))?;
    Ok(bundle.to_owned())
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
