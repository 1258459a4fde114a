//! Container hosts: a native one in namespaces of this machine, an emulated one in QEMU.

mod cgroup;
pub mod keeper;
pub mod leash;
pub mod native;
pub(crate) mod scratch;
pub mod services;
pub mod site;
pub mod vm;

pub use native::{HostOptions, NativeHost};
pub use services::Service;
pub use site::Site;
pub use vm::{VmHost, VmOptions};
