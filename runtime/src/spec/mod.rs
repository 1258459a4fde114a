//! `config.json` → checked types, with errors that name the field.

mod amend;
mod load;
mod locate;
mod namespaces;
mod template;
mod validate;

#[cfg(test)]
pub(crate) use load::parse_config;
pub(crate) use load::{Bundle, CONFIG_FILE, load_bundle, parse_process, parse_resources};
pub(crate) use namespaces::{Join, Namespaces};
pub use template::spec_template;
pub(crate) use validate::{check_process, check_spec, ignored_fields};

/// Version of the runtime-spec that states and features comply with.
pub const SPEC_VERSION: &str = "1.3.0";
