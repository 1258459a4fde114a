//! `config.json` → checked types, with errors that name the field.

mod template;

pub use template::spec_template;
