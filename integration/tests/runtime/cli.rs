//! The command line: options, output formats, exit codes and phrases that clients of runc read.
