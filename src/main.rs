//! The `bucketfs` command.

fn main() -> std::process::ExitCode {
    bucketfs::cli::main(std::env::args_os().collect())
}
