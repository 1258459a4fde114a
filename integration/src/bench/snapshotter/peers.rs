//! Lazy snapshotters of others, which take part when their programs are there: in the `PATH`, or in
//! `$XEBEC_PEERS_DIR`, which the host shows in its `PATH`.
//!
//! Each is configured as its own sample file does it, for registries without TLS. None of them has been
//! seen to start lazily here: of stargz-snapshotter and nydusd no program was at hand, and Debian's
//! soci-snapshotter 0.4.1, which was tried, asks for its index by TLS alone and then pulls everything,
//! which is told as a failure.

use std::fs;
use std::path::Path;

use super::super::measure::{in_path, output};
use super::super::suite::{Absent, Feed, Sampler, Task, Unit};
use super::cold::Kind;
use super::convert::Converted;
use super::daemon::{Process, unmount_below};
use super::node::{self, NETWORKS, Network, Node};
use super::{Image, Profile};
use crate::ctr::Stack;
use crate::error::{Error, Result};

/// What an image has to be for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Converted by us to this format, by a profile too.
    Converted(&'static str),
    /// As it was built, with the peer's own index in the registry.
    Ztoc,
}

/// A snapshotter and what it needs.
#[derive(Debug)]
pub(super) struct Peer {
    /// Its name in tables and in containerd.
    pub(super) name: &'static str,
    /// Programs that have to be there; the daemon is the first.
    programs: &'static [&'static str],
    arguments: &'static [&'static str],
    /// Where it listens.
    pub(super) socket: &'static str,
    /// All that it keeps.
    pub(super) root: &'static str,
    form: Form,
    /// Its files, given the registries that it is to ask without TLS.
    files: fn(&[String]) -> Vec<(&'static str, String)>,
}

/// All that are known.
pub(super) const ALL: [Peer; 3] = [
    Peer {
        name: "stargz",
        programs: &["containerd-stargz-grpc"],
        arguments: &[
            "--address=/run/bench-stargz/grpc.sock",
            "--root=/var/lib/bench-stargz",
            "--config=/etc/xebec/stargz.toml",
        ],
        socket: "/run/bench-stargz/grpc.sock",
        root: "/var/lib/bench-stargz",
        form: Form::Converted("estargz"),
        files: |registries| vec![("/etc/xebec/stargz.toml", plain(registries))],
    },
    Peer {
        name: "nydus",
        programs: &["containerd-nydus-grpc", "nydusd"],
        arguments: &["--config=/etc/xebec/nydus.toml"],
        socket: "/run/bench-nydus/grpc.sock",
        root: "/var/lib/bench-nydus",
        form: Form::Converted("nydus"),
        files: |_| {
            vec![
                ("/etc/xebec/nydus.toml", nydus()),
                ("/etc/xebec/nydusd.json", NYDUSD.to_owned()),
            ]
        },
    },
    Peer {
        name: "soci",
        programs: &["soci-snapshotter-grpc", "soci"],
        arguments: &[
            "--address=/run/bench-soci/grpc.sock",
            "--root=/var/lib/bench-soci",
            "--config=/etc/xebec/soci.toml",
        ],
        socket: "/run/bench-soci/grpc.sock",
        root: "/var/lib/bench-soci",
        form: Form::Ztoc,
        files: |registries| {
            // From 0.10 on an index that is found by referrers is used only where that is allowed.
            let allow = "[pull_modes.soci_v1]\nenable = true\n";
            vec![(
                "/etc/xebec/soci.toml",
                format!("{allow}{}", plain(registries)),
            )]
        },
    },
];

/// The registries' part of a file for stargz-snapshotter and its descendant.
fn plain(registries: &[String]) -> String {
    let each = registries.iter().map(|host| {
        format!(
            "[resolver.host.'{host}']\n[[resolver.host.'{host}'.mirrors]]\nhost = '{host}'\n\
             insecure = true\n"
        )
    });
    each.collect()
}

fn nydus() -> String {
    let program = |name| in_path(name).unwrap_or_default().display().to_string();
    format!(
        "version = 1\nroot = '/var/lib/bench-nydus'\naddress = '/run/bench-nydus/grpc.sock'\n\
         daemon_mode = 'dedicated'\n[daemon]\nnydusd_config = '/etc/xebec/nydusd.json'\n\
         nydusd_path = '{}'\nnydusimage_path = '{}'\nfs_driver = 'fusedev'\nthreads_number = 4\n\
         [log]\nlog_to_stdout = true\n[snapshot]\nenable_nydus_overlayfs = false\n",
        program("nydusd"),
        program("nydus-image"),
    )
}

/// Prefetches what the image's own table names, not all of it: that was measured to be faster on a
/// slow link.
const NYDUSD: &str = r#"{"device": {
  "backend": {"type": "registry", "config": {"scheme": "http", "timeout": 5, "connect_timeout": 5, "retry_limit": 2}},
  "cache": {"type": "blobcache", "config": {"work_dir": "/var/lib/bench-nydus/cache"}}},
 "mode": "direct", "digest_validate": false, "enable_xattr": true,
 "fs_prefetch": {"enable": true, "threads_count": 8, "prefetch_all": false}}
"#;

impl Peer {
    /// Whether it can take part.
    pub(super) fn is_there(&self) -> std::result::Result<(), Absent> {
        match self.programs.iter().find(|name| in_path(name).is_none()) {
            Some(missing) => Err(Absent(format!(
                "{}: {missing} was not found in PATH",
                self.name
            ))),
            None => Ok(()),
        }
    }

    /// Starts its daemon on a node that has forgotten everything.
    fn start(&self, node: &Node) -> Result<Process> {
        for (path, text) in (self.files)(&node.registries()) {
            fs::write(path, text).map_err(Error::file("write", Path::new(path)))?;
        }
        for parent in [Path::new(self.socket).parent(), Some(Path::new(self.root))] {
            let parent = parent.unwrap_or(Path::new("/"));
            fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        }
        let argv = [&self.programs[..1], self.arguments].concat();
        Process::start(self.name, &argv, self.socket)
    }

    fn stack(&self) -> Stack {
        Stack {
            snapshotter: self.name,
            ..Stack::XEBEC
        }
    }

    /// Rows that its starts go to, and whether the image is prepared by a profile.
    fn kinds(&self) -> &'static [(Kind, bool)] {
        match self.form {
            Form::Converted(_) => &[(Kind::Profile, true), (Kind::Estargz, false)],
            Form::Ztoc => &[(Kind::Estargz, false)],
        }
    }

    /// Has an image in the registry as this one wants it.
    fn publish(
        &self,
        converted: &Converted,
        image: &Image,
        profile: Option<&Profile>,
    ) -> Result<String> {
        match (self.form, profile) {
            (Form::Converted(format), None) => converted.convert(&image.ordinary, format),
            (Form::Converted(format), Some(profile)) => {
                converted.convert_by(&profile.recorded, &profile.fine, format, None)
            }
            (Form::Ztoc, _) => {
                node::pull(&image.ordinary, Stack::RUNC)?;
                output(&["soci", "create", &image.ordinary])?;
                output(&["soci", "push", "--plain-http", &image.ordinary])?;
                Ok(image.ordinary.clone())
            }
        }
    }

    /// A start on a node that has never seen the image; an error if that was no lazy one.
    fn cold(&self, node: &Node, network: Network, image: &Image, form: &str) -> Result<f64> {
        node.forget(None)?;
        let daemon = self.start(node)?;
        let started = node.cold(self.stack(), network, image.recipe, form);
        drop(daemon);
        unmount_below(self.root)?;
        let started = started?;
        if started.bytes > image.layer_bytes * 9 / 10 {
            let reason = format!("it pulled all of {form}");
            return Err(Error::invalid(self.name, reason));
        }
        Ok(started.ms)
    }
}

/// Cold starts by every peer; of one that is absent, the rows that it would be in.
pub(super) fn tasks<'a>(
    node: &'a Node,
    converted: &'a Converted,
    images: &'a [Image],
    profiles: &'a [Profile],
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    for peer in &ALL {
        for network in NETWORKS {
            for (image, profile) in images.iter().zip(profiles) {
                for &(kind, is_guided) in peer.kinds() {
                    let profile = is_guided.then_some(profile);
                    let mut published = None;
                    let sampler = move |_| {
                        if published.is_none() {
                            published = Some(peer.publish(converted, image, profile)?);
                        }
                        let form = published.as_deref().unwrap_or_default();
                        peer.cold(node, network, image, form).map(|ms| vec![ms])
                    };
                    tasks.push(Task {
                        feeds: vec![Feed {
                            row: kind.row(network, image).into(),
                            unit: Unit::Milliseconds,
                            contestant: peer.name,
                        }],
                        every: 1,
                        warms_up: false,
                        sampler: peer
                            .is_there()
                            .map(|()| -> Sampler<'a> { Box::new(sampler) }),
                    });
                }
            }
        }
    }
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_is_told_where_it_is_and_of_registries_without_tls() {
        let registries = ["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
        for peer in &ALL {
            let files = (peer.files)(&registries);
            let config = peer
                .arguments
                .iter()
                .find_map(|a| a.strip_prefix("--config="));
            assert_eq!(config, Some(files[0].0), "{}", peer.name);
            let told: String = files.iter().map(|(_, text)| text.as_str()).collect();
            let told = told + &peer.arguments.concat();
            assert!(told.contains(peer.socket) && told.contains(peer.root));
            let asks_plainly = told.contains("\"scheme\": \"http\"");
            assert!(asks_plainly || registries.iter().all(|host| told.contains(host.as_str())));
        }
    }
}
