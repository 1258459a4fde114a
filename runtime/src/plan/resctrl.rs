//! `linux.intelRdt` → a group of the resctrl file system.

use oci_spec::runtime::LinuxIntelRdt;

use super::FieldError;

/// Cache and memory bandwidth for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResctrlPlan {
    /// The class of service that the container shares with others; without it, it gets its own.
    pub(crate) class: Option<String>,
    /// Text for `schemata`.
    pub(crate) schemata: Option<String>,
    /// A monitoring group of the container's own is wanted.
    pub(crate) monitoring: bool,
    /// What to say where there is no resctrl.
    pub(crate) unavailable: Option<&'static str>,
}

/// Names that the file system keeps for itself.
const RESERVED: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];

impl ResctrlPlan {
    pub(crate) fn from_spec(wanted: &LinuxIntelRdt) -> Result<Self, FieldError> {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let class = some(wanted.clos_id());
        if let Some(class) = &class
            && (RESERVED.contains(&class.as_str()) || class.contains(['/', '\0', '\n']))
        {
            let reason = format!("invalid intelRdt.ClosID {class:?}");
            return Err(FieldError::new("linux.intelRdt.closID", &reason));
        }
        let (cache, bandwidth) = (some(wanted.l3_cache_schema()), some(wanted.mem_bw_schema()));
        let lines = wanted.schemata().as_deref().unwrap_or_default();
        let monitoring = wanted.enable_monitoring().unwrap_or(false);
        let unavailable = if cache.is_some() {
            Some("intelRdt.l3CacheSchema is specified in config, but Intel RDT/CAT is not enabled")
        } else if bandwidth.is_some() {
            Some("intelRdt.memBwSchema is specified in config, but Intel RDT/MBA is not enabled")
        } else if class.is_some() || monitoring || !lines.is_empty() {
            Some("intelRdt is specified in config, but Intel RDT is not enabled")
        } else {
            None
        };
        Ok(Self {
            class,
            schemata: if lines.is_empty() {
                combine(cache.as_deref(), bandwidth.as_deref())
            } else {
                Some(lines.join("\n"))
            },
            monitoring,
            unavailable,
        })
    }
}

/// Both schemas in one text. The specification lets the cache's carry a line about bandwidth,
/// which the schema of the bandwidth takes the place of.
fn combine(cache: Option<&str>, bandwidth: Option<&str>) -> Option<String> {
    let cache_lines = cache.into_iter().flat_map(str::lines);
    let kept = cache_lines.filter(|line| bandwidth.is_none() || !line.trim().starts_with("MB:"));
    let lines: Vec<&str> = kept.chain(bandwidth).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(json: &str) -> Result<ResctrlPlan, FieldError> {
        ResctrlPlan::from_spec(&serde_json::from_str(json).expect("well formed"))
    }

    #[test]
    fn schemas_are_combined_as_the_specification_says() {
        let table = [
            ("{}", None),
            (r#"{"l3CacheSchema":"L3:0=f"}"#, Some("L3:0=f")),
            (
                r#"{"l3CacheSchema":"L3:0=f\nMB:0=10"}"#,
                Some("L3:0=f\nMB:0=10"),
            ),
            (r#"{"memBwSchema":"MB:0=20"}"#, Some("MB:0=20")),
            (
                r#"{"l3CacheSchema":"MB:0=10\nL3:0=f","memBwSchema":"MB:0=20"}"#,
                Some("L3:0=f\nMB:0=20"),
            ),
            (
                r#"{"l3CacheSchema":"L3:0=f","schemata":["L3:0=3","MB:0=50"]}"#,
                Some("L3:0=3\nMB:0=50"),
            ),
        ];
        for (json, text) in table {
            let schemata = plan(json).expect("valid").schemata;
            assert_eq!(schemata.as_deref(), text, "{json}");
        }
    }

    #[test]
    fn a_class_is_one_name_and_none_of_the_file_systems_own() {
        assert!(plan(r#"{"closID":"gold"}"#).is_ok());
        for bad in ["..", "a/b", "info", "mon_groups"] {
            let refused = plan(&format!(r#"{{"closID":"{bad}"}}"#)).map_err(|e| e.field);
            assert_eq!(
                refused.err().as_deref(),
                Some("linux.intelRdt.closID"),
                "{bad}"
            );
        }
    }

    #[test]
    fn an_empty_section_asks_for_nothing_that_could_be_missing() {
        assert_eq!(plan("{}").expect("valid").unavailable, None);
        assert!(
            plan(r#"{"enableMonitoring":true}"#)
                .expect("valid")
                .unavailable
                .is_some()
        );
    }
}
