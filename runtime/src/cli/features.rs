use clap::Args;
use xebec_runtime::Result;

use super::list::print_json;

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  xebec features | jq .linux.cgroup")]
pub(super) struct Features {}

impl Features {
    #[expect(clippy::unused_self, reason = "every command has this shape")]
    pub(super) fn carry_out(self) -> Result<u8> {
        print_json(&xebec_runtime::features(), true)
    }
}
