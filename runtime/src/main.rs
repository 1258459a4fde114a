//! The xebec command.
#![cfg_attr(not(test), no_main)]

mod cli;

/// C's entry point in the place of the standard library's, which begins by reading the memory map
/// of the process to place a guard below its stack: a tenth of what `state` takes in all.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main() -> i32 {
    xebec_runtime::begin();
    std::process::exit(cli::main().into())
}
