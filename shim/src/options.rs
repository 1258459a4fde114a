//! Options of a runtime handler, in any of the forms containerd sends them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost_types::Any;
use serde::{Deserialize, Serialize};
use xebec_proto::{runc_options, runtimeoptions, unpack};
use xebec_runtime::{CLONE_ANNOTATIONS, TEMPLATES};

use crate::error::{Context, Error, Result};
use crate::io::overflow::{self, Overflow, Policy};

/// Environment variable that has the effect of `IgnoreMissingControllers = true`.
pub const IGNORE_MISSING_CONTROLLERS: &str = "XEBEC_IGNORE_MISSING_CONTROLLERS";

/// The configuration in a bundle.
const CONFIG: &str = "config.json";

/// How the annotations begin that set the same as the keys `LogOverflow`, `LogBuffer`, `LogSpill`.
const LOG_ANNOTATIONS: &str = "io.xebec.log.";

/// What an operator may set per runtime handler. The TOML keys are those of containerd's CRI
/// configuration for runc.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Options {
    /// A runc-compatible program to drive instead of the built-in runtime.
    pub binary_name: String,
    /// State directory of the runtime; the namespace is appended.
    pub root: PathBuf,
    /// Cgroups through systemd.
    pub systemd_cgroup: bool,
    /// Use chroot-like rootfs switching, for initramfs hosts.
    pub no_pivot_root: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Cgroup for the shim itself.
    pub shim_cgroup: String,
    /// Owner of the container's stdio pipes.
    pub io_uid: u32,
    /// Group of the container's stdio pipes.
    pub io_gid: u32,
    /// Warn instead of failing when a cgroup controller that a limit needs is absent.
    pub ignore_missing_controllers: bool,
    /// What happens to output of init's that nobody reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_overflow: Option<Policy>,
    /// Bytes of it that are kept in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_buffer: Option<u64>,
    /// Bytes of it that are kept in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_spill: Option<u64>,
    /// Where spans of traced calls go, such as `http://127.0.0.1:4318`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub traces_endpoint: String,
    /// Directory of the templates that annotations may name, when it is not the runtime's own.
    #[serde(skip_serializing_if = "is_empty")]
    pub template_root: PathBuf,
    /// Accepted for configurations shared with runc.
    #[serde(skip_serializing)]
    criu_path: String,
    #[serde(skip_serializing)]
    criu_image_path: String,
    /// Directory of CRIU's logs and statistics at a restore.
    #[serde(skip_serializing)]
    pub criu_work_path: PathBuf,
    #[serde(skip_serializing)]
    task_api_address: String,
    #[serde(skip_serializing)]
    task_api_version: u32,
}

impl Options {
    /// Decodes runc options or `runtimeoptions.v1`; nothing at all means the defaults.
    pub fn decode(any: Option<&Any>) -> Result<Options> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Options::default());
        };
        if let Some(runc) = unpack::<runc_options::Options>(any) {
            return Ok(Options::from(
                runc.map_err(|error| malformed(&any.type_url, &error))?,
            ));
        }
        if let Some(generic) = unpack::<runtimeoptions::Options>(any) {
            let generic = generic.map_err(|error| malformed(&any.type_url, &error))?;
            return Options::from_generic(&generic);
        }
        Err(Error::InvalidArgument(format!(
            "runtime options of type {:?}",
            any.type_url
        )))
    }

    /// Applies what the environment of the shim asks for.
    #[must_use]
    pub fn with_environment(mut self) -> Options {
        self.ignore_missing_controllers |=
            std::env::var_os(IGNORE_MISSING_CONTROLLERS).is_some_and(|value| value == "1");
        self
    }

    /// State directory of the runtime for one containerd namespace.
    pub fn state_root(&self, namespace: &str) -> PathBuf {
        let default = if self.binary_name.is_empty() {
            "/run/containerd/xebec"
        } else {
            "/run/containerd/runc"
        };
        let root = if self.root.as_os_str().is_empty() {
            PathBuf::from(default)
        } else {
            self.root.clone()
        };
        root.join(namespace)
    }

    fn from_generic(generic: &runtimeoptions::Options) -> Result<Options> {
        if !generic.config_body.is_empty() {
            let body = std::str::from_utf8(&generic.config_body)
                .map_err(|error| Error::InvalidArgument(format!("runtime options: {error}")))?;
            return Options::from_toml("runtime options", body);
        }
        if generic.config_path.is_empty() {
            return Ok(Options::default());
        }
        let text = std::fs::read_to_string(&generic.config_path)
            .context(|| format!("read runtime options {}", generic.config_path))?;
        Options::from_toml(&generic.config_path, &text)
    }

    fn from_toml(origin: &str, text: &str) -> Result<Options> {
        let options: Options = toml::from_str(text)
            .map_err(|error| Error::InvalidArgument(format!("{origin}: {}", error.message())))?;
        options.check(origin)?;
        Ok(options)
    }

    /// Applies what the annotations of the container in `bundle` say of its output.
    pub fn with_annotations(
        mut self,
        bundle: &Path,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Options> {
        let origin = bundle.join(CONFIG).display().to_string();
        for (key, value) in annotations {
            self.annotate(key, value).map_err(|error| {
                Error::InvalidArgument(format!("{origin}: annotation {key}: {error}"))
            })?;
        }
        self.check(&origin)?;
        Ok(self)
    }

    /// Where templates are that annotations may name.
    pub fn templates(&self) -> PathBuf {
        if is_empty(&self.template_root) {
            PathBuf::from(TEMPLATES)
        } else {
            self.template_root.clone()
        }
    }

    fn annotate(&mut self, key: &str, value: &str) -> std::result::Result<(), String> {
        let bytes = || value.parse().map_err(|error| format!("{value:?}: {error}"));
        match key.strip_prefix(LOG_ANNOTATIONS) {
            Some("overflow") => {
                let policy = serde_json::from_value(value.into());
                self.log_overflow = Some(policy.map_err(|error| error.to_string())?);
            }
            Some("buffer") => self.log_buffer = Some(bytes()?),
            Some("spill") => self.log_spill = Some(bytes()?),
            Some(_) => return Err("unknown".to_owned()),
            None => {}
        }
        Ok(())
    }

    /// Refuses sizes that make no sense.
    fn check(&self, origin: &str) -> Result<()> {
        let sizes = [
            ("LogBuffer", self.log_buffer, overflow::BUFFER),
            ("LogSpill", self.log_spill, overflow::SPILL),
        ];
        for (name, size, range) in sizes {
            if let Some(size) = size.filter(|size| !range.contains(size)) {
                let (least, most) = range.into_inner();
                let text = format!("{origin}: {name}: {size} is not within {least} and {most}");
                return Err(Error::InvalidArgument(text));
            }
        }
        Ok(())
    }

    /// What happens to unread output, if anything is set.
    pub fn overflow(&self) -> Option<Overflow> {
        let policy = self.log_overflow.unwrap_or_default();
        let is_set = policy != Policy::Block || self.log_buffer.is_some();
        is_set.then(|| Overflow {
            policy,
            buffer: self.log_buffer.unwrap_or(overflow::DEFAULT_BUFFER) as usize,
            spill: self.log_spill.unwrap_or(overflow::DEFAULT_SPILL),
        })
    }
}

#[allow(clippy::ptr_arg, reason = "serde hands in the field as it is")]
fn is_empty(path: &PathBuf) -> bool {
    path.as_os_str().is_empty()
}

/// The annotations of the container in `bundle`; none if none of them is for us.
pub fn annotations_for_us(bundle: &Path) -> Result<BTreeMap<String, String>> {
    let path = bundle.join(CONFIG);
    // The runtime, which reads it next, tells what is wrong with the file.
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    if ![LOG_ANNOTATIONS, CLONE_ANNOTATIONS]
        .iter()
        .any(|ours| text.contains(ours))
    {
        return Ok(BTreeMap::new());
    }
    annotations(text.as_bytes())
        .map_err(|error| Error::InvalidArgument(format!("{}: {error}", path.display())))
}

/// The annotations of a config.json.
pub(crate) fn annotations(config: &[u8]) -> serde_json::Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Config {
        annotations: Option<BTreeMap<String, String>>,
    }
    let config: Config = serde_json::from_slice(config)?;
    Ok(config.annotations.unwrap_or_default())
}

impl From<runc_options::Options> for Options {
    fn from(runc: runc_options::Options) -> Options {
        Options {
            binary_name: runc.binary_name,
            root: PathBuf::from(runc.root),
            systemd_cgroup: runc.systemd_cgroup,
            no_pivot_root: runc.no_pivot_root,
            no_new_keyring: runc.no_new_keyring,
            shim_cgroup: runc.shim_cgroup,
            io_uid: runc.io_uid,
            io_gid: runc.io_gid,
            criu_work_path: PathBuf::from(runc.criu_work_path),
            ..Options::default()
        }
    }
}

fn malformed(type_url: &str, error: &prost::DecodeError) -> Error {
    Error::InvalidArgument(format!("runtime options {type_url}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use xebec_proto::pack;

    fn generic(body: &str) -> Any {
        pack(&runtimeoptions::Options {
            config_body: body.as_bytes().to_vec(),
            ..Default::default()
        })
    }

    #[test]
    fn every_form_decodes_to_the_same_options() {
        let expected = Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            shim_cgroup: "/shims".into(),
            io_uid: 7,
            ..Options::default()
        };
        let runc = pack(&runc_options::Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            shim_cgroup: "/shims".into(),
            io_uid: 7,
            ..Default::default()
        });
        let mut prefixed = runc.clone();
        prefixed.type_url = format!("types.containerd.io/{}", prefixed.type_url);
        let body = "BinaryName = \"crun\"\nRoot = \"/r\"\nSystemdCgroup = true\n\
                    NoPivotRoot = true\nShimCgroup = \"/shims\"\nIoUid = 7\n";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), body).unwrap();
        let by_path = pack(&runtimeoptions::Options {
            config_path: file.path().to_str().unwrap().into(),
            ..Default::default()
        });
        for any in [runc, prefixed, generic(body), by_path] {
            assert_eq!(
                Options::decode(Some(&any)).unwrap(),
                expected,
                "{}",
                any.type_url
            );
        }
    }

    #[test]
    fn absent_and_empty_options_are_the_defaults() {
        for any in [None, Some(Any::default()), Some(generic(""))] {
            assert_eq!(Options::decode(any.as_ref()).unwrap(), Options::default());
        }
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        let unknown = Any {
            type_url: "acme.Options".into(),
            value: vec![],
        };
        let broken = Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: vec![0xff],
        };
        let no_file = pack(&runtimeoptions::Options {
            config_path: "/nonexistent/o.toml".into(),
            ..Default::default()
        });
        for (any, part) in [
            (unknown, "acme.Options"),
            (broken, "containerd.runc.v1.Options"),
            (generic("BinaryNam = \"x\""), "BinaryNam"),
            (generic("SystemdCgroup = \"yes\""), "invalid type"),
            (generic("LogOverflow = \"lose\""), "lose"),
            (generic("LogBuffer = 1"), "LogBuffer: 1 is not"),
            (no_file, "/nonexistent/o.toml"),
        ] {
            let error = Options::decode(Some(&any)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_happens_to_unread_output_is_set_by_keys_and_by_annotations() {
        let body = "LogOverflow = \"spill\"\nLogBuffer = 65536\n";
        let options = Options::decode(Some(&generic(body))).unwrap();
        let bundle = tempfile::tempdir().unwrap();
        let annotated = |annotations: &str| {
            let config = format!(r#"{{"ociVersion":"1.2.0","annotations":{{{annotations}}}}}"#);
            std::fs::write(bundle.path().join("config.json"), config).unwrap();
            let annotations = annotations_for_us(bundle.path())?;
            options
                .clone()
                .with_annotations(bundle.path(), &annotations)
        };
        assert_eq!(Options::default().overflow(), None);
        let set = |policy, buffer, spill| {
            Some(Overflow {
                policy,
                buffer,
                spill,
            })
        };
        let expected = set(Policy::Spill, 65536, overflow::DEFAULT_SPILL);
        assert_eq!(options.overflow(), expected);
        assert_eq!(annotated(r#""acme":"x""#).unwrap().overflow(), expected);
        let both = r#""io.xebec.log.overflow":"drop","io.xebec.log.spill":"70000""#;
        let both = annotated(both).unwrap();
        assert_eq!(both.overflow(), set(Policy::Drop, 65536, 70000));
        let record = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&record).unwrap(), both);
        for (annotation, part) in [
            (
                r#""io.xebec.log.overflow":"lose""#,
                "unknown variant `lose`",
            ),
            (
                r#""io.xebec.log.buffer":"1M""#,
                "io.xebec.log.buffer: \"1M\"",
            ),
            (r#""io.xebec.log.buffer":"10""#, "LogBuffer: 10"),
            (
                r#""io.xebec.log.spill":"99999999999""#,
                "LogSpill: 99999999999",
            ),
            (r#""io.xebec.log.size":"1""#, "io.xebec.log.size: unknown"),
            (r#""io.xebec.log.size":1"#, "config.json: invalid type"),
        ] {
            let error = annotated(annotation).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_handler_may_have_templates_of_its_own() {
        assert_eq!(
            Options::default().templates(),
            PathBuf::from("/var/lib/xebec/templates")
        );
        let own = Options::decode(Some(&generic("TemplateRoot = \"/srv/t\""))).unwrap();
        assert_eq!(own.templates(), PathBuf::from("/srv/t"));
        let record = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<Options>(&record).unwrap(), own);
    }

    #[test]
    fn the_state_root_depends_on_the_engine_and_the_namespace() {
        let mut options = Options::default();
        assert_eq!(
            options.state_root("k8s"),
            PathBuf::from("/run/containerd/xebec/k8s")
        );
        options.binary_name = "runc".into();
        assert_eq!(
            options.state_root("k8s"),
            PathBuf::from("/run/containerd/runc/k8s")
        );
        options.root = "/r".into();
        assert_eq!(options.state_root("k8s"), PathBuf::from("/r/k8s"));
    }
}
