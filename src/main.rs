//! Shim: hands the arguments to [`vzkeep::cli`] and returns its exit code.

fn main() -> std::process::ExitCode {
    vzkeep::cli::run(std::env::args_os().collect())
}
