use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;
use xebec_runtime::{Result, Signals, TEMPLATES, Template, TemplateRequest, Templates};

use super::criu::Program;
use super::list::{Format, align, print, print_json};
use super::template_record::Record;
use super::{Context, template_images as images};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  xebec template create web-warm web\n  xebec clone --detach web-warm web-1\n  xebec template list"
)]
pub(super) struct TemplateCommand {
    /// Directory of the templates
    #[arg(long, global = true, value_name = "DIR", default_value = TEMPLATES)]
    template_root: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a template of a running container
    Create(Create),
    /// Start a clone, have a command make its first request, and keep which pages that needs: later
    /// clones in the mode uffd get them before they ask
    Record(Record),
    /// List templates
    List {
        /// Table for people, JSON for programs
        #[arg(short, long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// Put a template into a registry
    Push(images::Push),
    /// Have a template of a registry here; what clones touch of it is fetched then
    Pull(images::Pull),
    /// Remove templates; their clones go on
    Rm {
        /// Names of templates
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Print what is known of a template, as JSON
    Inspect {
        /// Hold every byte of it against its record
        #[arg(long)]
        verify: bool,
        /// Name of the template
        name: String,
    },
}

#[derive(Args, Debug)]
struct Create {
    /// Let the container go on; it ends otherwise
    #[arg(long)]
    leave_running: bool,
    /// Allow clones to share memory even though the container runs without the rules that make
    /// that exact: for programs that are known not to give memory back in part
    #[arg(long)]
    allow_share: bool,
    /// Allow unix sockets with a peer outside the container
    #[arg(long)]
    ext_unix_sk: bool,
    /// Keep file locks
    #[arg(long)]
    file_locks: bool,
    #[command(flatten)]
    criu: Program,
    /// Name of the template
    name: String,
    /// Name of the container
    id: String,
}

impl TemplateCommand {
    pub(super) fn carry_out(self, context: &Context) -> Result<u8> {
        let templates = Templates::new(self.template_root.clone());
        match self.action {
            Action::Create(create) => create.carry_out(self.template_root, context),
            Action::Record(record) => record.carry_out(self.template_root, context),
            Action::Push(push) => push.carry_out(&templates),
            Action::Pull(pull) => pull.carry_out(&templates),
            Action::List { format } => list(&templates, format, context),
            Action::Rm { names } => {
                for name in names {
                    images::remove(&templates, &name.parse()?)?;
                }
                Ok(0)
            }
            Action::Inspect { verify, name } => {
                let name = name.parse()?;
                let template = if verify {
                    templates.verify(&name)?
                } else {
                    templates.get(&name)?
                };
                print_json(&template, true)
            }
        }
    }
}

impl Create {
    fn carry_out(self, templates: PathBuf, context: &Context) -> Result<u8> {
        let request = TemplateRequest {
            id: self.id.parse()?,
            templates,
            name: self.name.parse()?,
            allow_share: self.allow_share,
            criu: self.criu.path,
            ext_unix_sk: self.ext_unix_sk,
            file_locks: self.file_locks,
        };
        // An interrupt ends CRIU; this process stays to let the container go on.
        let _signals = Signals::block()?;
        context.runtime.create_template(&request)?;
        if !self.leave_running {
            context.runtime.delete(&request.id, true)?;
        }
        Ok(0)
    }
}

fn list(templates: &Templates, format: Format, context: &Context) -> Result<u8> {
    let (found, damaged) = templates.list()?;
    for error in &damaged {
        context.log.warning(&error.to_string());
    }
    match format {
        Format::Json => {
            let all: Vec<_> = found.iter().map(summary).collect();
            print_json(&all, false)
        }
        Format::Table => {
            let mut rows = vec![["NAME", "MODES", "MEMORY", "CREATED", "BUNDLE"].map(String::from)];
            rows.extend(found.iter().map(row));
            print(&align(&rows))
        }
    }
}

fn row(template: &Template) -> [String; 5] {
    let modes: Vec<_> = template.modes.iter().map(ToString::to_string).collect();
    let memory = template.own_memory + template.shared_memory;
    [
        template.name.to_string(),
        modes.join(","),
        format!("{:.1} MB", memory as f64 / 1e6),
        template.created.clone(),
        template.bundle.display().to_string(),
    ]
}

fn summary(template: &Template) -> serde_json::Value {
    json!({
        "name": template.name,
        "modes": template.modes,
        "guarded": template.guarded,
        "ownMemory": template.own_memory,
        "sharedMemory": template.shared_memory,
        "hotMemory": template.hot_memory,
        "created": template.created,
        "bundle": template.bundle,
    })
}
