use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use oci_spec::runtime::LinuxIntelRdt;
use serde_json::{Map, Value};
use xebec_runtime::{Error, Result, parse_resources};

use super::{Context, size};

/// Values are text here and numbers below, so that a bad one is refused in runc's words and an
/// empty one means the same as none.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec update --memory 512M --pids-limit 100 web\n  echo '{\"cpu\": {\"quota\": 50000}}' | xebec update --resources - web"
)]
pub(super) struct Update {
    /// File with linux.resources as in config.json, or - for stdin; other options are ignored then
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<String>,
    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_period: Option<String>,
    /// CPU time allowed in a period, in microseconds; -1 for no limit
    #[arg(long, value_name = "USEC", allow_hyphen_values = true)]
    cpu_quota: Option<String>,
    /// Unused CPU time that may be saved up, in microseconds
    #[arg(long, value_name = "USEC")]
    cpu_burst: Option<String>,
    /// Share of CPU time beside other containers, 2 to 262144
    #[arg(long, value_name = "SHARES")]
    cpu_share: Option<String>,
    /// 1 to run only when the CPU is idle, 0 as usual
    #[arg(long, value_name = "0|1")]
    cpu_idle: Option<String>,
    /// Period of the real-time quota (without effect on cgroup v2)
    #[arg(long, value_name = "USEC")]
    cpu_rt_period: Option<String>,
    /// Real-time quota (without effect on cgroup v2)
    #[arg(long, value_name = "USEC", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<String>,
    /// CPUs to use, such as 0-2,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory limit, in bytes or with a unit such as 64M; -1 for no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Memory that is reclaimed last
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_reservation: Option<String>,
    /// Limit of memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    #[arg(long, hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Most processes and threads; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<String>,
    /// Intel RDT schema of the L3 cache
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Intel RDT schema of the memory bandwidth
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// Name of the container
    id: String,
}

/// How the text of an option becomes a member of the document.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Unsigned,
    Signed,
    Size,
}

impl Update {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let id = self.id.parse()?;
        if let Some(wanted) = self.intel_rdt() {
            context.runtime.update_intel_rdt(&id, &wanted)?;
        }
        let resources = match &self.resources {
            Some(file) if file.as_os_str() == "-" => {
                let mut text = Vec::new();
                let read = io::stdin().lock().read_to_end(&mut text);
                read.map_err(Error::file("read", "standard input"))?;
                parse_resources("standard input".as_ref(), &text)?
            }
            Some(file) => {
                let text = fs::read(file).map_err(Error::file("open", file))?;
                parse_resources(file, &text)?
            }
            None => {
                self.warn_of_obsolete(context);
                let text = Value::from(self.document()?).to_string();
                parse_resources("options".as_ref(), text.as_bytes())?
            }
        };
        for warning in context.runtime.update(&id, &resources)? {
            context.log.warning(&warning);
        }
        Ok(0)
    }

    /// What the options say about cache and memory bandwidth.
    fn intel_rdt(&self) -> Option<LinuxIntelRdt> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (cache, bandwidth) = (given(&self.l3_cache_schema), given(&self.mem_bw_schema));
        if cache.is_none() && bandwidth.is_none() {
            return None;
        }
        let mut wanted = LinuxIntelRdt::default();
        wanted
            .set_l3_cache_schema(cache)
            .set_mem_bw_schema(bandwidth);
        Some(wanted)
    }

    fn warn_of_obsolete(&self, context: &Context) {
        let options = [
            ("kernel-memory", &self.kernel_memory),
            ("kernel-memory-tcp", &self.kernel_memory_tcp),
        ];
        for (option, value) in options {
            if is_given(value.as_ref()) {
                let text = format!("Setting --{option} is ignored and will be removed");
                context.log.warning(&text);
            }
        }
    }

    /// The options as a document of `linux.resources`.
    fn document(&self) -> Result<Map<String, Value>> {
        use Kind::{Signed, Size, Text, Unsigned};
        let options = [
            (
                "blkio-weight",
                &self.blkio_weight,
                Unsigned,
                "blockIO",
                "weight",
            ),
            ("cpu-period", &self.cpu_period, Unsigned, "cpu", "period"),
            ("cpu-quota", &self.cpu_quota, Signed, "cpu", "quota"),
            ("cpu-burst", &self.cpu_burst, Unsigned, "cpu", "burst"),
            ("cpu-share", &self.cpu_share, Unsigned, "cpu", "shares"),
            ("cpu-idle", &self.cpu_idle, Signed, "cpu", "idle"),
            (
                "cpu-rt-period",
                &self.cpu_rt_period,
                Unsigned,
                "cpu",
                "realtimePeriod",
            ),
            (
                "cpu-rt-runtime",
                &self.cpu_rt_runtime,
                Signed,
                "cpu",
                "realtimeRuntime",
            ),
            ("cpuset-cpus", &self.cpuset_cpus, Text, "cpu", "cpus"),
            ("cpuset-mems", &self.cpuset_mems, Text, "cpu", "mems"),
            ("memory", &self.memory, Size, "memory", "limit"),
            (
                "memory-reservation",
                &self.memory_reservation,
                Size,
                "memory",
                "reservation",
            ),
            ("memory-swap", &self.memory_swap, Size, "memory", "swap"),
            ("pids-limit", &self.pids_limit, Signed, "pids", "limit"),
        ];
        let mut document = Map::new();
        for (option, text, kind, section, member) in options {
            let Some(text) = text.as_ref().filter(|text| !text.is_empty()) else {
                continue;
            };
            let value = kind.value(text).ok_or_else(|| {
                Error::InvalidArgument(format!("invalid value for {option}: {text:?}"))
            })?;
            let section = document.entry(section).or_insert_with(|| Map::new().into());
            if let Some(section) = section.as_object_mut() {
                section.insert(member.to_owned(), value);
            }
        }
        Ok(document)
    }
}

fn is_given(option: Option<&String>) -> bool {
    option.is_some_and(|text| !text.is_empty())
}

impl Kind {
    fn value(self, text: &str) -> Option<Value> {
        match self {
            Self::Text => Some(text.into()),
            Self::Unsigned => text.parse::<u64>().ok().map(Value::from),
            Self::Signed => text.parse::<i64>().ok().map(Value::from),
            Self::Size if text == "-1" => Some((-1).into()),
            Self::Size => size::parse(text).map(Value::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn document(arguments: &[&str]) -> Result<Value> {
        let line = [&["update"], arguments, &["web"]].concat();
        let line = Line::try_parse_from(line).expect("well formed");
        line.update.document().map(Value::from)
    }

    #[test]
    fn options_become_the_document_that_a_file_would_hold() {
        let arguments = "--memory 64M --memory-swap -1 --cpu-quota -1 --cpu-burst 5 --cpuset-cpus 0-1 \
                         --pids-limit 7 --blkio-weight 100 --cpu-idle 1 --cpu-period=";
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        let expected = json!({
            "memory": {"limit": 67_108_864, "swap": -1},
            "cpu": {"quota": -1, "burst": 5, "cpus": "0-1", "idle": 1},
            "pids": {"limit": 7},
            "blockIO": {"weight": 100},
        });
        assert_eq!(document(&arguments).ok(), Some(expected));
    }

    #[test]
    fn a_bad_value_is_refused_with_its_option() {
        for (option, text) in [("memory", "abc"), ("cpu-quota", "x"), ("cpu-period", "-1")] {
            let argument = format!("--{option}={text}");
            let error = document(&[&argument]).expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("invalid value for {option}: ")),
                "{error}"
            );
        }
    }
}
